//! Flags of compression (permessage-deflate).

use clap::{Args, ValueEnum};

use super::failure::Failure;
use super::values::{bytes, bytes_or_0, channel_pattern, deflate_level};
use crate::access::grant::Patterns;
use crate::config::{DeflateMode, DeflateSettings};

/// The flags of compression.
#[derive(Clone, Debug, Args)]
pub(super) struct DeflateFlags {
    /// Compression of WebSocket messages (permessage-deflate): `context`: with reference to the previous messages of
    /// the channel; `fresh`: each alone; `off`.
    #[arg(long, env = "OYEZ_DEFLATE", value_name = "MODE", default_value = DEFLATE_DEFAULT)]
    deflate: DeflateFlag,

    /// Compression level, 1 to 9; without it, higher for more subscribers [default: automatic].
    #[arg(long, env = "OYEZ_DEFLATE_LEVEL", value_name = "N", value_parser = deflate_level)]
    deflate_level: Option<u8>,

    /// Minimum size of a message that is compressed, in bytes.
    #[arg(long, env = "OYEZ_DEFLATE_BYTES_MIN", value_name = "BYTES", default_value = "64", value_parser = bytes)]
    deflate_bytes_min: usize,

    /// Maximum bytes of messages that are kept as context of the next ones, of all channels.
    #[arg(long, env = "OYEZ_DEFLATE_CONTEXT_BYTES_MAX", value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    deflate_context_bytes_max: usize,

    /// Maximum bytes of messages that a channel keeps as context for each of its subscribers; 0: its last message.
    #[arg(long, env = "OYEZ_DEFLATE_CONTEXT_BYTES_PER_SUBSCRIBER", value_name = "BYTES", default_value = "64", value_parser = bytes_or_0)]
    deflate_context_bytes_per_subscriber: u32,

    /// Channels whose messages are not compressed, by name, or by prefix with `*`: repeat it, or separate them by
    /// commas (account.*, photos) [default: none].
    #[arg(long, env = "OYEZ_DEFLATE_EXCLUDE", value_name = "PATTERN", value_delimiter = ',', value_parser = channel_pattern)]
    deflate_exclude: Vec<String>,
}

/// The default of `--deflate`, as in [`DeflateSettings`].
const DEFLATE_DEFAULT: &str = if cfg!(feature = "deflate") { "context" } else { "off" };

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeflateFlag {
    Off,
    Fresh,
    Context,
}

impl DeflateFlags {
    pub(super) fn settings(&self) -> DeflateSettings {
        DeflateSettings {
            mode: match self.deflate {
                DeflateFlag::Off => DeflateMode::Off,
                DeflateFlag::Fresh => DeflateMode::Fresh,
                DeflateFlag::Context => DeflateMode::Context,
            },
            level: self.deflate_level,
            bytes_min: self.deflate_bytes_min,
            context_bytes_max: self.deflate_context_bytes_max,
            context_bytes_per_subscriber: self.deflate_context_bytes_per_subscriber as usize,
        }
    }

    /// Returns true if a compression level is given, and nothing is compressed.
    pub(super) fn has_level_without_effect(&self) -> bool {
        matches!(self.deflate, DeflateFlag::Off) && self.deflate_level.is_some()
    }

    /// The channels that are excluded from compression.
    pub(super) fn excluded(&self) -> Result<Patterns, Failure> {
        Patterns::parse(self.deflate_exclude.iter().map(String::as_str))
            .map_err(|why| Failure::Usage(why.to_string()))
    }
}
