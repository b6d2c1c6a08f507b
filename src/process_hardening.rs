//! Protection of the memory of a process that holds secrets: no core file contains it, and no other
//! process of the same user can read it.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Protects the memory of this process.
///
/// # Errors
/// The operating system refuses.
pub fn seal() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // PR_SET_DUMPABLE of prctl(2): only root may use /proc/PID/mem and ptrace(2).
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
