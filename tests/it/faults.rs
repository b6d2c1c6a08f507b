//! Nothing leaks and nothing is lost, whatever AWS answers and whenever the broker dies.

use crate::harness::stored::on_postgres;

/// Of what the file meets whole, a database, which is made anew for most of it, meets one in so
/// many; all of it when the environment has this.
const SAMPLE: usize = 7;
const WHOLE: &str = "CREDBROKER_TEST_WHOLE";

fn sample<T>(all: Vec<T>) -> Vec<T> {
    if on_postgres() && std::env::var_os(WHOLE).is_none() {
        all.into_iter().step_by(SAMPLE).collect()
    } else {
        all
    }
}

/// A test for each story.
macro_rules! stories {
    ($run:ident of $($name:ident: $story:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $run($story).await;
            }
        )*
    };
}

pub mod checker;
mod deaths;
pub mod kills;
mod matrix;
pub mod process;
