//! The hashes of keys, publishers and payloads, under a random seed.
//!
//! The fingerprint of a key has 128 bits: no publisher can choose a key that collides with that of another publisher,
//! and a collision by chance is negligible. A hash of 64 bits distinguishes payloads: a publisher that could make two
//! of them collide would lose a message of its own.
//!
//! The history file has the hashes, so they are SipHash over bytes that this module defines. Those of the standard
//! library may differ in another release of it.

use std::hash::{BuildHasher, Hasher, RandomState};

use siphasher::{sip, sip128};

use super::IdempotencyKey;
use crate::access::identity::ClientIdentity;
use crate::hub::change::kind_code;
use crate::wire::Kind;

/// The seeds of the hashes.
#[derive(Debug)]
pub(super) struct KeyHasher {
    /// The secret key of the hashes.
    seed: [u64; 2],
    /// The key of the hashes of publishers. It is the same on all nodes of a shared log: of two publishers with as many
    /// keys, the same one loses its oldest on each.
    pub(super) owner_seed: u64,
}

impl KeyHasher {
    /// Hashes that no publisher can predict.
    pub(super) fn random() -> KeyHasher {
        KeyHasher::with_seed([RandomState::new().hash_one(0), RandomState::new().hash_one(1)])
    }

    /// The hashes of another process.
    pub(super) fn with_seed(seed: [u64; 2]) -> KeyHasher {
        KeyHasher { seed, owner_seed: seed[0] }
    }

    /// The seed, without which stored keys are not found.
    pub(super) fn seed(&self) -> [u64; 2] {
        self.seed
    }

    /// A public number that identifies the seed.
    pub(super) fn table_id(&self) -> u32 {
        self.sip().finish() as u32
    }

    /// The hash of a channel, a publisher and a key.
    pub(super) fn fingerprint(&self, IdempotencyKey { channel, owner, key }: IdempotencyKey<'_>) -> [u64; 2] {
        let mut hasher = sip128::SipHasher13::new_with_keys(self.seed[0], self.seed[1]);
        write_text(&mut hasher, channel);
        write_owner(&mut hasher, owner);
        write_text(&mut hasher, key);
        let hash = sip128::Hasher128::finish128(&hasher);
        [hash.h1, hash.h2]
    }

    /// The hash of a publisher.
    pub(super) fn owner(&self, owner: ClientIdentity<'_>) -> u64 {
        let mut hasher = sip::SipHasher13::new_with_keys(self.owner_seed, 0);
        write_owner(&mut hasher, owner);
        hasher.finish()
    }

    /// The hash of a payload.
    pub(super) fn payload(&self, kind: Kind, payload: &[u8]) -> u64 {
        let mut hasher = self.sip();
        hasher.write(&[kind_code(kind)]);
        hasher.write(payload);
        hasher.finish()
    }

    fn sip(&self) -> sip::SipHasher13 {
        sip::SipHasher13::new_with_keys(self.seed[0], self.seed[1])
    }
}

fn write_owner(hasher: &mut impl Hasher, owner: ClientIdentity<'_>) {
    match owner {
        ClientIdentity::Subject(sub) => {
            hasher.write(&[0]);
            write_text(hasher, sub);
        }
        ClientIdentity::Network(number) => {
            hasher.write(&[1]);
            hasher.write(&number.to_le_bytes());
        }
    }
}

/// The length first, so that no two lists of texts are the same bytes.
fn write_text(hasher: &mut impl Hasher, text: &str) {
    hasher.write(&(text.len() as u64).to_le_bytes());
    hasher.write(text.as_bytes());
}
