//! What nobody else is to see of a process that holds secrets: no core file holds its memory,
//! and no other process of the same user reads it.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Keeps the memory of this process to itself.
///
/// # Errors
/// The system does not let it.
pub fn seal() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // prctl(2), PR_SET_DUMPABLE: /proc/PID/mem and ptrace(2) are for root alone.
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
