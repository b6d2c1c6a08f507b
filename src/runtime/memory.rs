//! What nobody else is to see of this process: no core file holds its memory, and no other
//! process of the same user reads it.

use rustix::process::{Resource, Rlimit, setrlimit};

use super::StartError;

/// Keeps the memory of this process to itself.
///
/// # Errors
/// The system does not let it.
pub(super) fn seal() -> Result<(), StartError> {
    let wrong = |error: rustix::io::Errno| StartError::Memory(error.into());
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(wrong)?;
    // prctl(2), PR_SET_DUMPABLE: /proc/PID/mem and ptrace(2) are for root alone.
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(wrong)?;
    Ok(())
}
