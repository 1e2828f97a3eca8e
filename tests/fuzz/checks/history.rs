//! The history file: whatever bytes it has, the server does not start, with a reason, or it has a prefix of the
//! messages of each channel as they were written.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use oyez::config::{HistoryFile, Limits};
use oyez::hub::Hub;
use oyez::ids::{ChannelName, Sender, Since};
use oyez::metrics::Metrics;
use oyez::server::clock_snapshot::{ClockSnapshot, ProcessTime};
use oyez::server::store::{Opened, load};
use oyez::time::LoopTime;
use oyez::wire::Kind;
use serde_json::Value;

use super::Input;

const CHANNELS: [&str; 3] = ["a", "long.channel-name:with_all_letters", "z"];
const CLOCKS: ClockSnapshot = ClockSnapshot { unix_ms: 1_000, boot_ms: 1_000, boot: 1 };
const TIMEOUT: Duration = Duration::from_secs(60);

/// The bytes of a file, and the messages in it by channel.
struct Template {
    bytes: Vec<u8>,
    messages: Vec<Vec<Value>>,
}

/// The first byte selects what the rest is: the bytes of a file, or changes of a file that the server has written.
pub fn check(data: &[u8]) {
    let template = template();
    let mut input = Input(data);
    let selected = input.u8();
    let mut bytes = if selected & 1 == 0 { input.0.to_vec() } else { template.bytes.clone() };
    if selected & 1 == 1 {
        if selected & 2 == 2 {
            bytes.truncate(input.u32() as usize % bytes.len());
        }
        while !input.is_empty() && !bytes.is_empty() {
            let at = input.u32() as usize % bytes.len();
            let count = usize::from(input.u8() % 8);
            for (byte, change) in bytes[at..].iter_mut().zip(input.bytes(count)) {
                *byte ^= change;
            }
        }
    }
    let is_unchanged = bytes == template.bytes;
    let file = file("input");
    fs::write(&file.path, &bytes).expect("a file");
    match read(&file) {
        Ok(messages) => {
            for (found, written) in messages.iter().zip(&template.messages) {
                assert!(written.starts_with(found), "{found:?}, and {written:?} were written");
            }
            if is_unchanged {
                assert_eq!(messages, template.messages);
            }
        }
        Err(why) => assert!(!is_unchanged && why.starts_with("--history-file "), "{why}"),
    }
    fs::remove_file(&file.path).expect("the file");
}

/// A name for this process and thread, in memory where possible.
fn file(name: &str) -> HistoryFile {
    let folder =
        Some(PathBuf::from("/dev/shm")).filter(|folder| folder.is_dir()).unwrap_or_else(std::env::temp_dir);
    let thread = format!("{:?}", std::thread::current().id());
    let digits: String = thread.chars().filter(char::is_ascii_digit).collect();
    HistoryFile {
        path: folder.join(format!("oyez-fuzz-{}-{digits}-{name}", std::process::id())),
        sync_ms: 1_000,
    }
}

fn time() -> ProcessTime {
    ProcessTime { now: LoopTime::from_millis(5), millis: 5 }
}

/// Opens a file, waiting for the thread that has written it before.
fn open(file: &HistoryFile) -> Result<Opened, String> {
    loop {
        let loaded =
            load(file, &Limits::default(), time(), CLOCKS).and_then(oyez::server::store::Loaded::mark_in_use);
        match loaded.map_err(|error| error.to_string()) {
            Err(why) if why.contains("another process") => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened,
        }
    }
}

/// The messages of all channels.
fn read(file: &HistoryFile) -> Result<Vec<Vec<Value>>, String> {
    let Opened { store, mut hub, .. } = open(file)?;
    drop(store);
    hub.check();
    Ok(messages(&mut hub))
}

fn messages(hub: &mut Hub) -> Vec<Vec<Value>> {
    let page = |name: &&str| {
        let mut page = hub.page(name, Since::Earliest, 1_000, time().now);
        let mut json = Vec::new();
        while !page.append(hub, &mut json, 1 << 20).1 {}
        let page: Value = serde_json::from_slice(&json).expect("a page");
        // Ids have the epoch, which differs after an unclean shutdown.
        let messages = page["messages"].as_array().expect("messages").clone();
        messages.into_iter().map(without_epoch).collect()
    };
    CHANNELS.iter().map(page).collect()
}

fn without_epoch(mut message: Value) -> Value {
    let id = message["id"].as_str().expect("an id").to_owned();
    message["id"] = id.split('-').next_back().into();
    message
}

/// Several commits, with messages of several sizes.
fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let file = file("template");
        let mut all = Vec::new();
        for round in 0..4 {
            let Opened { store, mut hub, .. } = open(&file).expect("a file of this test");
            for (index, name) in CHANNELS.iter().enumerate().skip(round % 2) {
                let channel = hub.open(&ChannelName::parse(name.as_bytes()).unwrap()).unwrap();
                for number in 0..3 + index {
                    let payload = vec![b'a' + round as u8; number * 40 * (1 + round * index)];
                    let kind = if number % 2 == 0 { Kind::Text } else { Kind::Binary };
                    hub.publish(channel, kind, &payload, Sender::default(), None);
                }
            }
            while let Some(channel) = hub.next_open_batch() {
                let _ = hub.finish_batch(channel, time().now);
            }
            all = messages(&mut hub);
            assert!(store.finish(&mut hub, &mut Metrics::default(), 1, time(), CLOCKS, TIMEOUT));
        }
        let bytes = fs::read(&file.path).expect("the file");
        fs::remove_file(&file.path).expect("the file");
        Template { bytes, messages: all }
    })
}
