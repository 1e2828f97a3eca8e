//! Compression of a channel's batches: once for each format, and for all subscribers that it is valid for.
//!
//! A channel keeps the last message that it compressed, one for each WebSocket format. Subscribers whose window ends with
//! that message receive the next batch compressed with reference to it; the others receive it compressed without. See
//! [`crate::wire::deflate`]. Each of these is encoded when the first subscriber needs it, and shared by all.

use std::rc::Rc;

use bytes::Bytes;

use crate::wire::deflate::{Context, Deflated, Deflater, Encoding, WindowEnd};
use crate::wire::{Form, Frames};

/// The formats of WebSockets, which are the first two of [`Form::ALL`].
const FORMATS: usize = 2;

/// A compressed message.
#[derive(Debug)]
struct Compressed {
    window: WindowEnd,
    /// Its end, as far as a window holds it.
    text: Bytes,
}

/// The last compressed message of a channel in each format.
#[derive(Debug, Default)]
pub(super) struct LastCompressed([Option<Compressed>; FORMATS]);

impl LastCompressed {
    /// Its memory, except for messages that are also in the history.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().flatten().map(|one| one.text.len()).sum()
    }
}

/// A batch as compressed frames.
#[derive(Debug)]
pub struct CompressedBatch {
    /// The frames.
    pub deflated: Deflated,
    /// The message that ends the window of a client that has received them; `None` if its compressor has no context.
    pub window: Option<WindowEnd>,
    /// They refer to the message before the batch.
    pub is_in_step: bool,
}

/// The compression of one batch.
#[derive(Debug, Default)]
pub(super) struct BatchCompression {
    /// The channel is excluded from compression.
    is_excluded: bool,
    before: Option<Box<LastCompressed>>,
    formats: Option<Box<[FormatCompression; FORMATS]>>,
}

/// The compression of one batch in one format.
#[derive(Debug, Default)]
struct FormatCompression {
    /// `None` until a subscriber needs it. The last message that is compressed, if there is one, and its index.
    last: Option<Option<(usize, Compressed)>>,
    alone: Option<Rc<CompressedBatch>>,
    fresh: Option<Rc<CompressedBatch>>,
    in_step: Option<Rc<CompressedBatch>>,
}

impl BatchCompression {
    /// The compression of a batch that follows these messages.
    pub(super) fn after(before: Option<Box<LastCompressed>>) -> BatchCompression {
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
        deflater: &mut Deflater,
    ) -> Option<Rc<CompressedBatch>> {
        if encoding == Encoding::Plain || self.is_excluded {
            return None;
        }
        let before = self.before.as_ref().and_then(|last| last.0.get(form.index())?.as_ref());
        let format = self.formats.get_or_insert_default().get_mut(form.index())?;
        let window = format.last(plain, deflater)?.1.window;
        let (context, window, encoded) = match (encoding, before) {
            (Encoding::Plain, _) => return None,
            (Encoding::Alone, _) => (Context::Alone, None, &mut format.alone),
            (Encoding::Context(Some(at)), Some(before)) if at == before.window => {
                (Context::After(&before.text), Some(window), &mut format.in_step)
            }
            (Encoding::Context(_), _) => (Context::Fresh, Some(window), &mut format.fresh),
        };
        let encode = || {
            let deflated = deflater.compress(std::iter::once(&plain[..]), context);
            let is_in_step = matches!(context, Context::After(_));
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
        format.last(plain, deflater).map(|(index, last)| (*index, last.window))
    }

    /// Returns the last compressed messages after the batch. A batch in which no message was compressed has moved no
    /// window, and changes nothing.
    pub(super) fn into_last(self) -> Option<Box<LastCompressed>> {
        let Some(formats) = self.formats else { return self.before };
        let mut last = self.before.unwrap_or_default();
        for (last, format) in last.0.iter_mut().zip(*formats) {
            if let Some(Some((_, compressed))) = format.last {
                *last = Some(compressed);
            }
        }
        last.0.iter().any(Option::is_some).then_some(last)
    }
}

impl FormatCompression {
    fn last(&mut self, plain: &Frames, deflater: &mut Deflater) -> Option<&(usize, Compressed)> {
        self.last
            .get_or_insert_with(|| {
                let (index, text) = deflater.last_compressed(plain)?;
                Some((index, Compressed { window: deflater.next_window(), text }))
            })
            .as_ref()
    }
}
