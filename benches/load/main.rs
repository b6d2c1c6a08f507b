//! Cost of a broker for its users: `cargo bench --bench load`.
//!
//! Measures every row of docs/performance.md, each with its baseline, and prints the page; with
//! `--write` it replaces the existing page and its plot. Everything runs on one machine: the load,
//! the broker, and a stand-in for AWS that answers each call after a fixed time.
//!
//! `cargo bench --bench load -- on --help` puts load on any broker, the one that `CREDBROKER_ADDR`,
//! `CREDBROKER_CA_FILE` and `CREDBROKER_TOKEN_FILE` name.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a benchmark that cannot go on stops; the harness is shared with the tests"
)]

mod bare;
mod child;
#[allow(dead_code, unused_imports, reason = "shared with the tests")]
#[path = "../../tests/it/harness/mod.rs"]
mod harness;
mod load;
mod plot;
mod rows;
mod stored;
mod stub;
mod world;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use credbroker::client::{Evidence, Settings};
use load::Load;
use tonic::Status;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Writes the page to `docs` if every row was measured, and the plot if it was measured.
    #[arg(long)]
    write: bool,
    /// Measures only the rows whose names contain one of these words.
    #[arg(long)]
    only: Vec<String>,
    /// Flag that `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Puts load on a running broker.
    On {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// Runs a part of the measurement in a process of its own.
    #[command(hide = true, subcommand)]
    Beside(Beside),
}

#[derive(Subcommand)]
enum Beside {
    /// Stands in for AWS.
    Stub { millis: u64 },
    /// Calls AWS's stand-in without a broker.
    Sdk {
        endpoint: String,
        callers: usize,
        seconds: u64,
    },
    /// Answers every call with an empty message.
    Empty { directory: PathBuf },
}

impl Beside {
    async fn serve(self) {
        match self {
            Self::Stub { millis } => stub::serve(Duration::from_millis(millis)).await,
            Self::Sdk {
                endpoint,
                callers,
                seconds,
            } => bare::sdk(&endpoint, callers, Duration::from_secs(seconds)).await,
            Self::Empty { directory } => bare::empty(&directory).await,
        }
    }
}

#[derive(clap::Args)]
struct BrokerArguments {
    #[arg(long, env = "CREDBROKER_ADDR")]
    addr: String,
    #[arg(long, env = "CREDBROKER_CA_FILE")]
    ca_file: PathBuf,
    /// A file that holds the token.
    #[arg(long, env = "CREDBROKER_TOKEN_FILE")]
    token_file: PathBuf,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    match arguments.command {
        None => rows::all(&arguments.only, arguments.write).await,
        Some(Command::On { load, broker }) => {
            if let Err(status) = on(&load, broker).await {
                eprintln!("error: {}", status.message());
                std::process::exit(1);
            }
        }
        Some(Command::Beside(other)) => tokio::select! {
            () = other.serve() => {}
            () = child::orphaned() => {}
        },
    }
}

async fn on(load: &Load, broker: BrokerArguments) -> Result<(), Status> {
    let settings = Settings {
        address: broker.addr,
        ca_file: broker.ca_file,
        evidence: Evidence::TokenFile(broker.token_file),
    };
    let outcome = load.put(&settings).await?;
    println!("{:.0} answers a second", outcome.rate());
    for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
        println!("{quantile:5} {:9.2} ms", outcome.at(quantile));
    }
    println!("{} errors", outcome.errors.len());
    if let Some(first) = outcome.errors.first() {
        println!("the first: {first}");
    }
    Ok(())
}
