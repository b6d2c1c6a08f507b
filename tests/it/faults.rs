//! Nothing leaks and nothing is lost, whatever AWS answers and whenever the broker dies.

mod checker;
mod deaths;
mod kills;
mod matrix;
mod process;
