//! Compresses a channel's batches: once for each format, for all subscribers that can decompress the result.
//!
//! A channel keeps a *context* for each WebSocket format: the last messages that it compressed. Subscribers in step
//! with the context receive the next batch compressed with reference to it; the others receive the batch compressed
//! without reference to earlier messages. See [`crate::wire::deflate`]. Each of the two encodings is made when the
//! first subscriber needs it, and shared by all.
//!
//! **Window invariant**: if the [`WindowEnd`] of a connection is that of a context, the connection's window ends with
//! the whole context. A batch in which a message is compressed gets a new window end, which each connection takes that
//! is sent the batch compressed. The end of the connection's window then depends on how it was sent the batch, and
//! limits the context:
//!
//! | the connection was sent the batch | its window ends with | the context becomes |
//! | --- | --- | --- |
//! | in step | the context before the batch, then the batch | both |
//! | fresh, since its window ended differently | the batch | the batch |
//! | merged with batches of other channels | the messages after the last one of another channel | these |
//!
//! The server records a window end for a connection in one place, `record_compressed` (`server::deliver`), when it has
//! queued a [`CompressedBatch`]: of `BatchCompression::encode`, in step or fresh, or of `BatchGroup::compress`
//! (`hub::merge`), merged. Each of them truncates the context as it encodes, whether or not the connection's outbox
//! then takes the batch. A subscription begins without a window end, and when the numbers are used up, all are
//! forgotten together with the contexts. Nothing else changes one: replays, and messages that a subscriber is sent
//! early, are plain.
//!
//! The context becomes the shortest of those that occur: one fresh subscriber truncates it to the batch, for all. A
//! connection that is not sent the batch, or sent it plain in whole or in part, keeps its window and its window end,
//! which is no longer the channel's. A context may always be shortened at its beginning: its end is still the end of
//! all these windows.
//!
//! **A limit on everything**: the messages of a context before the last one are a copy. It has at most
//! `--deflate-context-bytes-per-subscriber` for each subscriber that is in step, so that all contexts together are
//! bounded by the connections, and the time to prime the compressor by that of the sends. The last message is a
//! reference to memory that the history holds.

use std::rc::Rc;

use bytes::Bytes;

use crate::wire::deflate::{Context, Deflated, Deflater, Encoding, WINDOW_BYTES, WindowEnd};
use crate::wire::{Form, Frames};

/// The formats of WebSockets, which are the first two of [`Form::ALL`].
const FORMATS: usize = 2;

/// A context that would be smaller consists of the last message only: a copy of few messages is not worth an allocation
/// for each channel.
const EARLIER_BYTES_MIN: usize = 1 << 10;

/// The texts of the last compressed messages in one format.
#[derive(Debug)]
struct FormatContext {
    window: WindowEnd,
    /// The messages before the last one, end to end. The first one may lack its beginning.
    earlier: Vec<u8>,
    /// The end of the last message, as far as a window holds it.
    last: Bytes,
}

/// The context of a channel in each format.
#[derive(Debug, Default)]
pub(super) struct ChannelContext([Option<FormatContext>; FORMATS]);

/// A batch as compressed frames.
#[derive(Debug)]
pub struct CompressedBatch {
    /// The frames.
    pub deflated: Deflated,
    /// The message that ends the window of a client that has received them; `None` if its compressor has no context.
    pub window: Option<WindowEnd>,
    /// The batch is compressed with reference to messages before it.
    pub is_in_step: bool,
}

/// The compression of one batch.
#[derive(Debug, Default)]
pub(super) struct BatchCompression {
    /// The channel is excluded from compression.
    is_excluded: bool,
    before: Option<Box<ChannelContext>>,
    formats: Option<Box<[FormatCompression; FORMATS]>>,
}

/// The compression of one batch in one format.
#[derive(Debug, Default)]
struct FormatCompression {
    /// The last message that is compressed, if there is one; `None` until a subscriber needs it.
    last: Option<Option<LastCompressed>>,
    /// Index of the first message of the batch that the next context may contain; `None`: it may contain the whole
    /// batch, and the context before it.
    context_start: Option<usize>,
    /// Subscribers whose window ends with the context after the batch.
    in_step_after: usize,
    alone: Option<Rc<CompressedBatch>>,
    fresh: Option<Rc<CompressedBatch>>,
    in_step: Option<Rc<CompressedBatch>>,
}

/// The last message of a batch that is compressed.
#[derive(Debug)]
struct LastCompressed {
    /// Its index in the batch.
    index: usize,
    window: WindowEnd,
    /// The end of its text, as far as a window holds it.
    text: Bytes,
}

impl ChannelContext {
    /// Returns the memory in use, including that of the last messages, which the history shares.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().flatten().map(|one| one.earlier.capacity() + one.last.len()).sum()
    }

    /// Keeps only the last message of each format.
    pub(super) fn forget_earlier(&mut self) {
        self.0.iter_mut().flatten().for_each(|one| one.earlier = Vec::new());
    }

    /// Releases memory after subscribers have left.
    pub(super) fn shrink(&mut self, bytes_per_subscriber: usize, subscribers: impl Fn(Form) -> usize) {
        for (form, context) in Form::ALL.into_iter().zip(&mut self.0) {
            let Some(context) = context else { continue };
            let bytes_max = earlier_bytes_max(subscribers(form), bytes_per_subscriber);
            // Shrinking copies the context, so it does not happen with each subscriber that leaves.
            if context.earlier.capacity() > 2 * bytes_max {
                append_up_to(&mut context.earlier, std::iter::empty, bytes_max);
            }
        }
    }
}

/// The maximum size of a context without the last message, for this number of subscribers.
fn earlier_bytes_max(subscribers: usize, bytes_per_subscriber: usize) -> usize {
    let bytes = subscribers.saturating_mul(bytes_per_subscriber).min(WINDOW_BYTES);
    Some(bytes).filter(|&bytes| bytes >= EARLIER_BYTES_MIN).unwrap_or_default()
}

/// Appends texts to a context, and drops its beginning so that it has at most `bytes_max`.
fn append_up_to<'t, T: Iterator<Item = &'t [u8]>>(
    context: &mut Vec<u8>,
    texts: impl Fn() -> T,
    bytes_max: usize,
) {
    let bytes: usize = texts().map(<[u8]>::len).sum();
    let (appended, mut skipped) = (bytes.min(bytes_max), bytes.saturating_sub(bytes_max));
    let kept = context.len().min(bytes_max - appended);
    context.drain(..context.len() - kept);
    if context.capacity() > 2 * bytes_max {
        context.shrink_to(bytes_max);
    }
    if context.capacity() < kept + appended {
        // The capacity doubles, up to the maximum.
        let capacity = (2 * context.capacity()).clamp(kept + appended, bytes_max);
        context.reserve_exact(capacity - kept);
    }
    for text in texts() {
        let from = skipped.min(text.len());
        skipped -= from;
        context.extend_from_slice(&text[from..]);
    }
}

impl BatchCompression {
    /// The compression of a batch in a channel with this context.
    pub(super) fn after(before: Option<Box<ChannelContext>>) -> BatchCompression {
        BatchCompression { is_excluded: false, before, formats: None }
    }

    /// The compression of a batch whose channel is excluded: all subscribers receive plain frames.
    pub(super) fn excluded() -> BatchCompression {
        BatchCompression { is_excluded: true, ..BatchCompression::default() }
    }

    /// Returns true if the channel is excluded from compression.
    pub(super) fn is_excluded(&self) -> bool {
        self.is_excluded
    }

    /// Returns the batch in the encoding of a connection that receives all of it; `None` if it is to receive the plain
    /// frames.
    pub(super) fn encode(
        &mut self,
        form: Form,
        plain: &Frames,
        encoding: Encoding,
        subscribers: usize,
        deflater: &mut Deflater,
    ) -> Option<Rc<CompressedBatch>> {
        if encoding == Encoding::Plain || self.is_excluded {
            return None;
        }
        let before = self.before.as_ref().and_then(|context| context.0.get(form.index())?.as_ref());
        let format = self.formats.get_or_insert_default().get_mut(form.index())?;
        let window = format.last(plain, deflater)?.window;
        format.in_step_after += usize::from(encoding != Encoding::Alone);
        let (context, window, encoded) = match (encoding, before) {
            (Encoding::Plain, _) => return None,
            (Encoding::Alone, _) => (Context::Alone, None, &mut format.alone),
            (Encoding::Context(Some(at)), Some(before)) if at == before.window => {
                let context = Context::After { earlier: &before.earlier, last: &before.last };
                (context, Some(window), &mut format.in_step)
            }
            (Encoding::Context(_), _) => {
                format.context_start = format.context_start.max(Some(0));
                (Context::Fresh, Some(window), &mut format.fresh)
            }
        };
        let encode = || {
            let deflated = deflater.compress(std::iter::once(&plain[..]), context, subscribers);
            let is_in_step = matches!(context, Context::After { .. });
            Rc::new(CompressedBatch { deflated, window, is_in_step })
        };
        Some(encoded.get_or_insert_with(encode).clone())
    }

    /// Returns the index of the last message that is compressed, and the window that ends with it.
    pub(super) fn last(
        &mut self,
        form: Form,
        plain: &Frames,
        deflater: &mut Deflater,
    ) -> Option<(usize, WindowEnd)> {
        let format = self.formats.get_or_insert_default().get_mut(form.index())?;
        format.last(plain, deflater).map(|last| (last.index, last.window))
    }

    /// Limits the context after the batch to its messages from `start` on: the windows of some subscribers end with
    /// these, and with no earlier ones.
    pub(super) fn start_context_at(&mut self, form: Form, start: usize) {
        let formats = self.formats.as_mut().and_then(|formats| formats.get_mut(form.index()));
        if let Some(format) = formats {
            format.context_start = format.context_start.max(Some(start));
        }
    }

    /// Returns the context after the batch, which is given in each format that has subscribers. A batch in which no
    /// message was compressed has moved no window, and changes nothing.
    pub(super) fn into_context<'f>(
        self,
        plain: impl Fn(Form) -> Option<&'f Frames>,
        bytes_per_subscriber: usize,
        deflater: &Deflater,
    ) -> Option<Box<ChannelContext>> {
        let Some(formats) = self.formats else { return self.before };
        let mut contexts = self.before.unwrap_or_default();
        for ((form, context), format) in Form::ALL.into_iter().zip(&mut contexts.0).zip(*formats) {
            let FormatCompression { last: Some(Some(last)), context_start, in_step_after, .. } = format
            else {
                continue;
            };
            let before = context.take().filter(|_| context_start.is_none());
            let (mut earlier, previous) =
                before.map(|before| (before.earlier, before.last)).unwrap_or_default();
            let frames: &[u8] = plain(form).map_or(&[], |frames| &frames[..]);
            let range = context_start.unwrap_or(0)..last.index;
            let texts = || {
                let batch = deflater.compressed_texts(frames).filter(|(index, _)| range.contains(index));
                std::iter::once(&previous[..]).chain(batch.map(|(_, text)| text))
            };
            let bytes_max = earlier_bytes_max(in_step_after, bytes_per_subscriber);
            append_up_to(&mut earlier, texts, bytes_max);
            *context = Some(FormatContext { window: last.window, earlier, last: last.text });
        }
        contexts.0.iter().any(Option::is_some).then_some(contexts)
    }
}

impl FormatCompression {
    fn last(&mut self, plain: &Frames, deflater: &mut Deflater) -> Option<&LastCompressed> {
        self.last
            .get_or_insert_with(|| {
                let (index, text) = deflater.last_compressed(plain)?;
                Some(LastCompressed { index, window: deflater.next_window(), text })
            })
            .as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_texts_end_a_context_of_at_most_its_maximum() {
        let texts: Vec<Vec<u8>> =
            (0..60u8).map(|number| vec![number; usize::from(number) * 7 % 50]).collect();
        for bytes_max in [0, 1, 10, 100, 1_000, 10_000] {
            for step in [1, 2, 7, 60] {
                let (mut context, mut all) = (Vec::new(), Vec::new());
                for texts in texts.chunks(step) {
                    append_up_to(&mut context, || texts.iter().map(Vec::as_slice), bytes_max);
                    all.extend(texts.concat());
                    assert_eq!(context, all[all.len().saturating_sub(bytes_max)..]);
                    assert!(context.capacity() <= bytes_max, "{} of {bytes_max}", context.capacity());
                }
                append_up_to(&mut context, std::iter::empty, bytes_max / 3);
                assert_eq!(context, all[all.len().saturating_sub(bytes_max / 3)..]);
                assert!(context.capacity() <= bytes_max.max(8) / 3 * 2, "it is released");
            }
        }
    }
}
