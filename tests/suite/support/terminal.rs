//! A pseudo-terminal of 80 columns, for commands that behave differently on a terminal.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::process::TEST_TIMEOUT;

/// A pseudo-terminal, and its output.
pub struct Terminal {
    screen: Arc<Mutex<Vec<u8>>>,
    inside: OwnedFd,
}

impl Terminal {
    pub fn new() -> Terminal {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let inside = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&outside, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = screen.clone();
        // The thread ends when no process has the terminal open.
        thread::spawn(move || {
            let mut outside = File::from(outside);
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = outside.read(&mut bytes) {
                shown.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Terminal { screen, inside }
    }

    /// Starts a command whose three streams are the terminal.
    pub fn start(&self, mut command: Command) -> Child {
        let stream = || self.inside.try_clone().unwrap();
        command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap()
    }

    /// A stream of it alone.
    pub fn stream(&self) -> OwnedFd {
        self.inside.try_clone().unwrap()
    }

    /// The output so far; lines end in CR LF.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until something has been written.
    pub fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.text().contains(text) {
            assert!(start.elapsed() < TEST_TIMEOUT, "{text:?} is not in {:?}", self.text());
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
