//! The file that is appended to: its lock, its syncs, and how another takes its place.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::format::{Header, Preamble};

/// A history file that is being written.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) file: File,
    pub(super) salt: u64,
    /// Its bytes.
    pub(super) length: u64,
    /// How many of them are safe on the disk.
    pub(super) synced: u64,
    /// The number of the next batch.
    pub(super) ordinal: u64,
}

impl LogFile {
    /// A new file beside the one at `path`, to take its place by [`LogFile::install`].
    pub(super) fn beside(path: &Path) -> io::Result<LogFile> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(name_beside(path))?;
        lock(&file)?;
        // A number that nobody outside can know.
        let salt = RandomState::new().hash_one(path);
        let preamble = Preamble { salt }.to_bytes();
        (&file).write_all(&preamble)?;
        Ok(LogFile { file, salt, length: preamble.len() as u64, synced: 0, ordinal: 0 })
    }

    /// Puts it at `path`, where it is from now on, whatever happens.
    pub(super) fn install(&mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.synced = self.length;
        fs::rename(name_beside(path), path)?;
        // rename(2) is safe on the disk when the folder is. If that fails, a power cut may bring the old file
        // back, which is not clean either: nobody is told anything wrong.
        let _ = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Appends a batch; the header's number and checksum are filled in here.
    pub(super) fn append(&mut self, header: Header, body: &[u8]) -> io::Result<()> {
        let header = Header {
            length: body.len() as u32,
            checksum: crc32fast::hash(body),
            ordinal: self.ordinal,
            synced: self.synced,
            ..header
        };
        let bytes = header.to_bytes(self.salt);
        self.file.write_all(&bytes)?;
        self.file.write_all(body)?;
        self.length += (bytes.len() + body.len()) as u64;
        self.ordinal += 1;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.synced < self.length {
            self.file.sync_data()?;
            self.synced = self.length;
        }
        Ok(())
    }

    pub(super) fn unsynced(&self) -> u64 {
        self.length - self.synced
    }
}

/// Where a file is made that will take the place of the one at `path`.
pub(super) fn name_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".oyez-new");
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Takes the lock that keeps other processes out until the file is closed.
pub(super) fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?)
}
