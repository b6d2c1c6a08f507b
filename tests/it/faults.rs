//! Faults: nothing leaks and nothing is lost, whatever AWS answers and whenever the broker dies.

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
