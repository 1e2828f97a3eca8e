//! Shared test helpers: frames and requests written by hand, a server process, a client, and an engine in memory.

#[cfg(feature = "jwt")]
pub mod auth_server;
#[cfg(feature = "backplane")]
pub mod backplane;
pub mod chunked;
pub mod client;
#[cfg(feature = "backplane")]
pub mod cluster;
pub mod deflate;
#[cfg(feature = "deflate")]
pub mod deflate_subscriber;
pub mod folder;
pub mod frames;
pub mod http;
pub mod key_files;
#[cfg(feature = "backplane")]
pub mod log_server;
pub mod manual;
pub mod process;
#[cfg(feature = "backplane")]
pub mod redis;
pub mod relay;
pub mod rig;
pub mod source;
pub mod terminal;
pub mod tls;
pub mod tokens;
pub mod v1;

/// Makes the threads of a test stop when its scope ends, also after a failed assertion.
pub struct StopOnDrop<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
