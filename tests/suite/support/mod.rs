//! What the tests have in common: frames and requests by hand, a server process, a client, an engine in memory.

pub mod chunked;
pub mod client;
pub mod cut;
pub mod frames;
pub mod guarded;
pub mod http;
pub mod key_files;
pub mod manual;
pub mod process;
pub mod rig;
pub mod terminal;
pub mod tls;
pub mod tokens;

/// Tells the threads of a test to end when its scope does, by a failed assertion too.
pub struct Done<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
