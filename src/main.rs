//! The command line; everything else is in the library.

use std::{alloc::System, process::ExitCode};

use zeroizing_alloc::ZeroAlloc;

/// Memory is wiped when it is given back: no secret outlives its last use in some buffer.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    credbroker::cli::main()
}
