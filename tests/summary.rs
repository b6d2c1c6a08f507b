//! Prints the last lines of `cargo test`: the number of integration tests that ran, and the cases
//! that this run left to `tests/exhaustive.sh`. The tests have noted these in a file
//! (`it/harness/report.rs`).

use std::{error::Error, fs, os::unix::process::parent_id, path::Path, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let report = format!("report-{}", parent_id());
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(report);
    // Without notes no integration test ran, or a filter has chosen some.
    let Ok(notes) = fs::read_to_string(&report) else {
        return Ok(());
    };
    fs::remove_file(&report)?;
    let notes: Vec<_> = notes
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let of = |kind| {
        notes
            .iter()
            .filter(move |note| note.0 == kind)
            .map(|note| note.1)
    };
    let binary = of("binary")
        .next()
        .ok_or("the tests have not noted their binary")?;
    let store = of("store").next().unwrap_or_default();
    println!("\nintegration tests over {store}: {} ran", count(binary)?);
    println!("left to tests/exhaustive.sh:");
    let (mut tried, mut all) = (0, 0);
    for (one, of) in of("faults").filter_map(|text| text.split_once(" of ")) {
        tried += one.parse::<u32>()?;
        all += of.parse::<u32>()?;
    }
    println!(
        "  faults and deaths: {} of {all} ({tried} ran)",
        all - tried
    );
    for text in of("left") {
        println!("  {text}");
    }
    println!("  the fuzz targets, and over the other store what works with either");
    Ok(())
}

/// Number of tests that a binary runs without a filter.
fn count(binary: &str) -> Result<usize, Box<dyn Error>> {
    let list = |flags: &[&str]| {
        let listed = Command::new(binary).arg("--list").args(flags).output()?;
        let listed = String::from_utf8(listed.stdout)?;
        let tests = listed.lines().filter(|line| line.ends_with(": test"));
        Ok::<_, Box<dyn Error>>(tests.count())
    };
    Ok(list(&[])? - list(&["--ignored"])?)
}
