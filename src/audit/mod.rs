//! The audit log as a Merkle tree in public formats: RFC 6962 for the tree, C2SP tlog-tiles for
//! files, tlog-checkpoint and signed-note for signed texts. Pure, except that it reads and writes
//! these files.

pub mod checkpoint;
pub mod cloudtrail;
pub mod files;
pub mod leaf;
pub mod note;
pub mod ocsf;
pub mod proof;
pub mod reconcile;
pub mod tile;
pub mod tree;
pub mod verify;

#[cfg(test)]
mod tests;
