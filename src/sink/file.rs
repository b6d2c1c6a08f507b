//! The audit log in a file, one JSON object per line. The file is rotated before it grows too
//! large.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    broker::ports::{Sink, SinkError},
    domain::name::Name,
};

/// Bytes read at once in the search for the end of a line.
const BLOCK: usize = 4096;

/// A file, and the older files beside it.
pub struct FileSink {
    name: Name,
    path: PathBuf,
    /// Locked during each write, even if the caller stops waiting for it.
    files: Arc<Mutex<RotatedFiles>>,
}

struct RotatedFiles {
    path: PathBuf,
    rotate_at: u64,
    keep: u32,
}

impl FileSink {
    /// Creates a sink that writes to this file, of `rotate_at` bytes at most unless a single record
    /// is longer. `keep` older files are beside it: `PATH.1`, the newest of them, to `PATH.KEEP`.
    #[must_use]
    pub fn new(name: Name, path: PathBuf, rotate_at: u64, keep: u32) -> Self {
        let files = RotatedFiles {
            path: path.clone(),
            rotate_at,
            keep,
        };
        Self {
            name,
            path,
            files: Arc::new(Mutex::new(files)),
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    fn name(&self) -> &Name {
        &self.name
    }

    async fn deliver(&self, leaves: &[Vec<u8>]) -> Result<(), SinkError> {
        let files = Arc::clone(&self.files).lock_owned().await;
        let leaves = leaves.to_vec();
        let done = spawn_blocking(move || files.append(&leaves)).await;
        let done = done.map_err(io::Error::other).flatten();
        done.map_err(|error| SinkError(format!("{}: {error}", self.path.display())))
    }
}

impl RotatedFiles {
    /// Appends the lines durably.
    fn append(&self, leaves: &[Vec<u8>]) -> io::Result<()> {
        let (mut file, mut size) = self.open()?;
        let mut lines = Vec::new();
        for leaf in leaves {
            let length = leaf.len() as u64 + 1;
            if size > 0 && size + length > self.rotate_at {
                write(&mut file, &lines)?;
                lines.clear();
                self.rotate()?;
                (file, size) = self.open()?;
            }
            lines.extend_from_slice(leaf);
            lines.push(b'\n');
            size += length;
        }
        write(&mut file, &lines)
    }

    /// Opens the file, and cuts off the partial line that a crash has left at its end. Returns the
    /// file's size as well.
    fn open(&self) -> io::Result<(File, u64)> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let size = end_of_lines(&file, found.len())?;
        if size < found.len() {
            file.set_len(size)?;
        }
        if size == 0 {
            self.sync_directory()?;
        }
        Ok((file, size))
    }

    /// Renames the file to number 1, and each older file to the next number, up to the first that
    /// is free. The last file is overwritten.
    fn rotate(&self) -> io::Result<()> {
        let older = (1..self.keep).find(|number| !self.numbered(*number).exists());
        for number in (1..older.unwrap_or(self.keep)).rev() {
            fs::rename(self.numbered(number), self.numbered(number + 1))?;
        }
        fs::rename(&self.path, self.numbered(1))?;
        self.sync_directory()
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }

    fn sync_directory(&self) -> io::Result<()> {
        let parent = self.path.parent();
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

fn write(file: &mut File, lines: &[u8]) -> io::Result<()> {
    file.write_all(lines)?;
    file.sync_data()
}

/// Returns the offset at which the last whole line of a file of this length ends.
fn end_of_lines(file: &File, length: u64) -> io::Result<u64> {
    let (mut end, mut bytes) = (length, [0; BLOCK]);
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let block = &mut bytes[..usize::try_from(end - start).unwrap_or(BLOCK)];
        file.read_exact_at(block, start)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path, keep: u32) -> RotatedFiles {
        RotatedFiles {
            path: directory.join("log"),
            rotate_at: 10,
            keep,
        }
    }

    fn append(files: &RotatedFiles, lines: &[&str]) {
        let leaves: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        files.append(&leaves).unwrap();
    }

    fn text(files: &RotatedFiles, number: u32) -> Option<String> {
        fs::read_to_string(files.numbered(number)).ok()
    }

    #[test]
    fn a_file_is_replaced_before_it_grows_too_large_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path(), 2);
        // Ten bytes fit, an eleventh does not; a longer line has a file of its own.
        append(&files, &["1234", "2345", "3", "456789", "5"]);
        assert_eq!(text(&files, 2).unwrap(), "1234\n2345\n");
        assert_eq!(text(&files, 1).unwrap(), "3\n456789\n");
        append(&files, &["a line that is too long", "6"]);
        assert_eq!(text(&files, 3), None);
        assert_eq!(text(&files, 2).unwrap(), "5\n");
        assert_eq!(text(&files, 1).unwrap(), "a line that is too long\n");
        assert_eq!(fs::read_to_string(&files.path).unwrap(), "6\n");
    }

    #[test]
    fn a_rotation_that_was_cut_off_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path(), 9);
        append(&files, &["12345678", "23456789", "3"]);
        fs::rename(files.numbered(2), files.numbered(3)).unwrap();
        append(&files, &["34567890"]);
        let all: Vec<_> = (1..=9).filter_map(|number| text(&files, number)).collect();
        assert_eq!(all, ["3\n", "23456789\n", "12345678\n"]);
        assert_eq!(fs::read_to_string(&files.path).unwrap(), "34567890\n");
    }

    #[test]
    fn what_a_crash_has_left_of_a_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let files = RotatedFiles {
            rotate_at: u64::MAX,
            ..files(directory.path(), 1)
        };
        let long = "x".repeat(3 * BLOCK);
        for torn in ["", "torn", &long, &format!("{}\n{long}", "y".repeat(BLOCK))] {
            fs::write(&files.path, torn).unwrap();
            append(&files, &["next"]);
            let kept = torn.rfind('\n').map_or(0, |at| at + 1);
            let expected = format!("{}next\n", &torn[..kept]);
            assert_eq!(fs::read_to_string(&files.path).unwrap(), expected);
        }
    }

    #[test]
    fn only_a_regular_file_is_written_to() {
        let files = RotatedFiles {
            path: "/dev/null".into(),
            rotate_at: 10,
            keep: 1,
        };
        files.append(&[b"1".to_vec()]).unwrap_err();
    }
}
