//! Entries of the log: no panic; as many items as are counted; the same items after they are encoded again, in no more
//! bytes; a prefix yields the first items or an error; and entries that are decoded as they were encoded.

use oyez::access::identity::ClientIdentity;
use oyez::backplane::block_set::BlockSet;
use oyez::backplane::entry::{
    ChannelCounts, Entry, EntryHeader, Item, LogKey, LogMessage, RunNumbers, mark_resent,
};
use oyez::ids::{ClientId, MessageId, RunId, SlotId};
use oyez::wire::Kind;

use super::Input;

/// The input as an entry, and an entry that is made of it.
pub fn check(data: &[u8]) {
    if let Ok(entry) = Entry::parse(data) {
        check_entry(data, &entry);
    }
    check_made(Input(data));
}

fn check_entry(data: &[u8], entry: &Entry<'_>) {
    let items: Vec<Item<'_>> = entry.items().collect();
    assert_eq!(items.len() as u64, entry.count);
    let mut again = encode(entry.header, &items);
    assert!(again.len() <= data.len(), "{} bytes became {}", data.len(), again.len());
    expect(&again, entry.header, &items);
    mark_resent(&mut again);
    expect(&again, EntryHeader { is_resent: true, ..entry.header }, &items);
    for cut in (0..data.len()).step_by(1 + data.len() / 16) {
        if let Ok(prefix) = Entry::parse(&data[..cut]) {
            assert!(items.starts_with(&prefix.items().collect::<Vec<_>>()), "cut at {cut}");
        }
    }
}

fn encode(header: EntryHeader, items: &[Item<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    header.append(&mut out);
    for item in items {
        let before = out.len();
        item.append(&mut out);
        assert!(out.len() - before <= item.len_max(), "{item:?} has {} bytes", out.len() - before);
        if let Item::EpochReport { numbers, .. } = item {
            let mut buffer = Vec::new();
            assert_eq!(RunNumbers::encode(numbers.iter(), &mut buffer), *numbers);
        }
    }
    out
}

fn expect(bytes: &[u8], header: EntryHeader, items: &[Item<'_>]) {
    let entry = Entry::parse(bytes).expect("an encoded entry");
    assert_eq!((entry.header, entry.count), (header, items.len() as u64));
    assert_eq!(entry.items().collect::<Vec<_>>(), items);
}

/// The values of an item.
struct Values {
    kind: u8,
    numbers: [u32; 3],
    long: u64,
    rows: Vec<(u32, u64)>,
    hash: [u8; 32],
    texts: [String; 3],
    channel: String,
    payload: Vec<u8>,
}

fn check_made(mut input: Input<'_>) {
    let header = EntryHeader { run: RunId(input.u32()), number: input.u64(), is_resent: input.u8() & 1 == 1 };
    let mut values = Vec::new();
    while values.len() < 4 && (values.is_empty() || !input.is_empty()) {
        values.push(self::values(&mut input));
    }
    let mut buffers = vec![Vec::new(); values.len()];
    let items: Vec<Item<'_>> =
        values.iter().zip(&mut buffers).map(|(values, buffer)| item(values, buffer)).collect();
    let mut bytes = encode(header, &items);
    expect(&bytes, header, &items);
    check_entry(&bytes, &Entry::parse(&bytes).expect("an encoded entry"));
    // A few bytes are changed.
    let changes = 1 + input.u8() % 4;
    for _ in 0..changes {
        let at = input.u32() as usize % bytes.len();
        bytes[at] = input.u8();
    }
    if let Ok(entry) = Entry::parse(&bytes) {
        check_entry(&bytes, &entry);
    }
}

fn values(input: &mut Input<'_>) -> Values {
    const ALPHABET: &[u8] = b"abcXYZ019_.:-";
    let kind = input.u8();
    let numbers = [(); 3].map(|()| input.u32());
    let long = input.u64();
    let rows = (0..input.u8() % 8).map(|_| (input.u32(), input.u64())).collect();
    let hash = [input.u8(); 32];
    let mut texts = [(); 3].map(|()| input.text());
    // An idempotency key has at most 128 bytes of ASCII.
    texts[1] = texts[1].chars().filter(char::is_ascii).take(128).collect();
    let length = 1 + usize::from(input.u8());
    let name =
        input.bytes(length.min(255)).iter().map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()] as char);
    let mut channel: String = name.collect();
    if channel.is_empty() {
        channel.push('a');
    }
    let count = usize::from(input.u8()) * 16;
    Values { kind, numbers, long, rows, hash, texts, channel, payload: input.bytes(count).to_vec() }
}

fn item<'a>(values: &'a Values, buffer: &'a mut Vec<u8>) -> Item<'a> {
    let [a, b, c] = values.numbers;
    let [text, key, _] = &values.texts;
    match values.kind % 16 {
        2 => {
            let mut blocks = BlockSet::default();
            blocks.insert(u64::from(a));
            Item::Heartbeat { connections: a, subscriptions: b, version: c, blocks }
        }
        3 => {
            let numbers =
                RunNumbers::encode(values.rows.iter().map(|&(run, number)| (RunId(run), number)), buffer);
            Item::EpochReport { epoch: values.long, numbers }
        }
        4 => Item::Disconnect { reference: a, sub: text },
        5 => Item::DisconnectResult { run: RunId(a), reference: b, connections: c },
        6 => Item::Ticket { hash: &values.hash, owner: owner(values), grant: text },
        7 => Item::Redeem { hash: &values.hash, channel: (a & 1 == 1).then_some(&values.channel) },
        8 => Item::Settings { idempotency_keys: a, idempotency_age_ms: b },
        9 => Item::Shutdown,
        10 => Item::Placeholder,
        11 => Item::StreamEnded { hash: &values.hash, channel: &values.channel, grant: text },
        12 => {
            values.rows.iter().for_each(|(count, _)| ChannelCounts::push(buffer, &values.channel, *count));
            Item::SubscriberCounts {
                is_request: a & 1 == 1,
                range: (a & 2 == 2).then_some((key.as_str(), values.channel.as_str())),
                counts: ChannelCounts::encoded(buffer),
            }
        }
        _ => {
            let is_text = std::str::from_utf8(&values.payload).is_ok();
            Item::Message(LogMessage {
                channel: &values.channel,
                kind: if !is_text {
                    Kind::Binary
                } else if a & 1 == 0 {
                    Kind::Text
                } else {
                    Kind::Data
                },
                payload: &values.payload,
                client: (a & 2 == 2).then(|| ClientId::of(SlotId { key: 0, generation: b }, 0)),
                user: (a & 4 == 4).then_some(text),
                key: (a & 8 == 8).then(|| LogKey {
                    owner: owner(values),
                    key,
                    unknown_until: MessageId { epoch: values.long, seq: u64::from(c) },
                }),
            })
        }
    }
}

fn owner(values: &Values) -> ClientIdentity<'_> {
    match values.numbers[0] & 16 {
        0 => ClientIdentity::Network(values.long),
        _ => ClientIdentity::Subject(&values.texts[2]),
    }
}
