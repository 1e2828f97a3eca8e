//! The file of a Unix listening socket: created with its permissions, and removed with the socket.
//!
//! bind(2) fails if the file exists, even if the process that created it was killed. A socket on which no process
//! listens is therefore removed first; other files never are.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use log::{info, warn};
use socket2::{Domain, SockAddr, Socket, Type};

/// A socket file that this process has created. It is removed on drop, unless another file has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// The state of the path of a [`SocketFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFileState {
    /// The file that the process has created.
    Present,
    /// No file: it was removed, and clients cannot connect.
    Missing,
    /// Another file, such as the socket of another server.
    Replaced,
}

impl SocketFile {
    /// Creates the file and listens. `mode` sets its permissions; without it they are those that the umask leaves.
    ///
    /// # Errors
    /// Another process listens on it, the path is that of another file, or the file cannot be created.
    pub fn listen(path: &Path, mode: Option<u32>, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
        if is_stale(path)? {
            info!("unix:{}: no process listens on this socket; removed", path.display());
            fs::remove_file(path)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = SocketFile::of(path)?;
        if let Some(mode) = mode {
            // Before listen(2): until then clients cannot connect.
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        socket.listen(backlog)?;
        Ok((socket.into(), file))
    }

    /// The file at a path, which this process has created.
    ///
    /// # Errors
    /// The file does not exist.
    pub fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }

    /// Compares the file at the path with the one that was created.
    pub fn state(&self) -> SocketFileState {
        match identity(&self.path) {
            Ok(found) if found == self.identity => SocketFileState::Present,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SocketFileState::Missing,
            Ok(_) | Err(_) => SocketFileState::Replaced,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.state() != SocketFileState::Present {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove unix:{}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Checks that a path can be listened on. Returns true if it is a socket on which no process listens, false if nothing
/// exists there.
///
/// # Errors
/// Another process listens on it, the path is that of another file or too long, or its directory does not exist.
pub(super) fn is_stale(path: &Path) -> io::Result<bool> {
    let address = SockAddr::unix(path)?;
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            return folder.map_or(Ok(false), |folder| fs::metadata(folder).map(|_| false));
        }
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file exists and is not a socket; remove it, or choose another path",
        ));
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // With a full backlog connect(2) would wait.
    socket.set_nonblocking(true)?;
    match socket.connect(&address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}
