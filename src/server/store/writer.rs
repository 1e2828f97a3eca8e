//! The thread that writes: the only one beside the loop's, since a write to a disk blocks, and waiting for
//! the disk to be safe takes from a millisecond to seconds.
//!
//! It knows nothing but bytes that are to be appended. When the file has grown to more than twice what is
//! kept it also writes a new one that has only that, in small steps between the batches, which meanwhile
//! go to the old one: **the old file is whole until the new one takes its place**.

use std::fs::{self, File};
use std::io::{self, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread;

use log::{error, info, warn};

use super::format::{Batches, Header, Next, Preamble, What};
use super::log_file::{LogFile, name_beside};
use crate::hub::sieve::Sieve;

/// Unsynced bytes after which the disk is made to catch up; what a slow one writes in a second.
const UNSYNCED_MAX: u64 = 8 << 20;

/// A file below that is not worth a new one.
const SLACK_BYTES: u64 = 4 << 20;

/// Steps of a new file for each batch while there are batches to write. A step takes one batch of the old
/// file, so it is four times as fast as what it runs after.
const STEPS_PER_BATCH: usize = 4;

/// Bytes of a batch in a new file.
const SIFTED_BYTES: usize = 256 << 10;

/// A batch to be appended.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    /// What all histories hold, to judge how much of the file is needed.
    pub(super) kept_bytes: u64,
    /// It has to be safe on the disk at once.
    pub(super) syncs: bool,
}

/// What has become of an order.
#[derive(Debug)]
pub(super) enum Report {
    Written {
        /// The order's buffer, for another.
        body: Vec<u8>,
        /// What was appended.
        appended: u64,
        /// How large the file is now.
        file_bytes: u64,
    },
    /// Nothing is written any more.
    Failed,
}

/// The thread, to be waited for.
pub(super) type Thread = thread::JoinHandle<()>;

/// Begins to write. The thread ends when the orders do, after [`What::Clean`], or when it fails.
pub(super) fn start(
    path: PathBuf,
    log: LogFile,
    orders: Receiver<Order>,
    reports: Sender<Report>,
) -> io::Result<Thread> {
    let writer = Writer { path, log, last: None, installed_bytes: 0, renewal: None };
    thread::Builder::new().name("history-file".into()).spawn(move || writer.run(&orders, &reports))
}

struct Writer {
    path: PathBuf,
    log: LogFile,
    /// The newest header.
    last: Option<Header>,
    /// The size of the file that was made last, or of the last attempt.
    installed_bytes: u64,
    renewal: Option<Renewal>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>, reports: &Sender<Report>) {
        loop {
            let order = if self.renewal.is_some() {
                match orders.try_recv() {
                    Ok(order) => Some(order),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => break,
                }
            } else {
                match orders.recv() {
                    Ok(order) => Some(order),
                    Err(_) => break,
                }
            };
            let steps = if order.is_some() { STEPS_PER_BATCH } else { 1 };
            if let Some(order) = order {
                let is_last = order.header.what == What::Clean;
                let kept_bytes = order.kept_bytes;
                let report = self.write(order).unwrap_or_else(|failure| {
                    error!(
                        "history file {}: {failure}; everybody is served on, but what is published from now on does not \
                         outlive this process, and after a restart clients are told that something is missing",
                        self.path.display()
                    );
                    Report::Failed
                });
                let has_failed = matches!(report, Report::Failed);
                // If nobody listens any more, the channel of orders says so as well.
                let _ = reports.send(report);
                if is_last || has_failed {
                    break;
                }
                self.judge_size(kept_bytes);
            }
            for _ in 0..steps {
                self.renew();
            }
        }
        if self.renewal.is_some() {
            let _ = fs::remove_file(name_beside(&self.path));
        }
    }

    fn write(&mut self, order: Order) -> io::Result<Report> {
        let Order { header, mut body, syncs, .. } = order;
        let before = self.log.length;
        if header.what == What::Clean {
            // It tells that all before it is safe.
            self.log.sync()?;
        }
        self.log.append(header, &body)?;
        if syncs || self.log.unsynced() > UNSYNCED_MAX {
            self.log.sync()?;
        }
        self.last = Some(header);
        body.clear();
        Ok(Report::Written { body, appended: self.log.length - before, file_bytes: self.log.length })
    }

    /// Begins a new file if this one has too much that is not needed.
    fn judge_size(&mut self, kept_bytes: u64) {
        let most = (SLACK_BYTES + 2 * kept_bytes).max(2 * self.installed_bytes);
        if self.renewal.is_none() && self.log.length > most {
            match Renewal::begin(&self.path, self.log.salt) {
                Ok(renewal) => self.renewal = Some(renewal),
                Err(error) => self.give_up(&error),
            }
        }
    }

    fn renew(&mut self) {
        let (Some(renewal), Some(last)) = (&mut self.renewal, self.last) else { return };
        match renewal.step(&self.path, self.log.length, last) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(renewal) = self.renewal.take() {
                    info!(
                        "history file {}: {} bytes, {} without what is kept no more",
                        self.path.display(),
                        self.log.length,
                        renewal.new.length
                    );
                    self.log = renewal.new;
                    self.installed_bytes = self.log.length;
                }
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Without a new file the old one is as good, and only grows.
    fn give_up(&mut self, error: &io::Error) {
        warn!(
            "history file {}: cannot be written anew: {error}; it grows, and that is tried again at {} bytes",
            self.path.display(),
            2 * self.log.length
        );
        self.renewal = None;
        self.installed_bytes = self.log.length;
        let _ = fs::remove_file(name_beside(&self.path));
    }
}

/// A new file in the making.
struct Renewal {
    old: Batches<BufReader<File>>,
    sieve: Sieve,
    /// The old file up to here has been learned; `None` while learning.
    learned: Option<u64>,
    new: LogFile,
    sifted: Vec<u8>,
}

impl Renewal {
    fn begin(path: &Path, salt: u64) -> io::Result<Renewal> {
        Ok(Renewal {
            old: open_old(path, salt)?,
            sieve: Sieve::default(),
            learned: None,
            new: LogFile::beside(path)?,
            sifted: Vec::new(),
        })
    }

    /// One batch further; true when the new file is in place.
    fn step(&mut self, path: &Path, length: u64, last: Header) -> io::Result<bool> {
        self.old.grow(length);
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "what was written does not read back");
        match (self.old.next()?, self.learned) {
            (Next::Batch(_), None) => self.sieve.learn(self.old.body()).map_err(|_| broken())?,
            (Next::End, None) => {
                self.learned = Some(length);
                self.old = open_old(path, self.old.salt())?;
            }
            (Next::Batch(header), Some(learned)) => {
                if self.old.at() <= learned {
                    self.sieve.sift(self.old.body(), &mut self.sifted).map_err(|_| broken())?;
                } else {
                    self.sifted.extend_from_slice(self.old.body());
                }
                if self.sifted.len() >= SIFTED_BYTES {
                    self.put(header)?;
                }
            }
            (Next::End, Some(_)) => {
                self.put(last)?;
                self.new.install(path)?;
                return Ok(true);
            }
            (Next::Torn | Next::Damaged, _) => return Err(broken()),
        }
        Ok(false)
    }

    fn put(&mut self, header: Header) -> io::Result<()> {
        // Whatever the old file had there, this one is not clean.
        self.new.append(Header { what: What::Changes, ..header }, &self.sifted)?;
        self.sifted.clear();
        if self.new.unsynced() > UNSYNCED_MAX {
            self.new.sync()?;
        }
        Ok(())
    }
}

fn open_old(path: &Path, salt: u64) -> io::Result<Batches<BufReader<File>>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(Preamble::BYTES as u64))?;
    let length = file.metadata()?.len();
    Ok(Batches::new(BufReader::with_capacity(64 << 10, file), salt, length))
}
