//! Queries: requests whose response the server generates, and the progress of that response.
//!
//! Most responses are short and whole. A listing or a history page may be long, and is encoded and sent in slices
//! (chunks in HTTP/1.1): the connection waits in `Responding` meanwhile and is not read, and holds one slice.

use super::response::ResponseOptions;
use crate::hub::page::Page;
use crate::session::intent::Query;

/// A query whose response is not complete.
#[derive(Debug)]
pub struct PendingQuery {
    /// The requested resource.
    pub query: Query,
    /// How the response is framed.
    pub options: ResponseOptions,
    /// The progress of the response.
    pub progress: QueryProgress,
}

/// The progress of a response.
#[derive(Debug)]
pub enum QueryProgress {
    /// Nothing is sent: an error response is still possible.
    Pending,
    /// The head of a listing is sent, and its first slices.
    Listing(Listing),
    /// The head of a history page is sent, and its first slices.
    Page(Page),
}

impl QueryProgress {
    /// Returns true if the head of the response is sent.
    pub fn has_begun(&self) -> bool {
        !matches!(self, QueryProgress::Pending)
    }
}

/// The progress of a listing of channels. Its cursor is a name: channels come and go between slices, and those that
/// stay are listed once.
#[derive(Debug)]
pub struct Listing {
    /// The last channel that was looked at.
    pub cursor: Option<Box<str>>,
    /// The last channel that was listed.
    pub last: Option<Box<str>>,
    /// Maximum number of further channels.
    pub left: usize,
    /// False before its first byte.
    pub has_begun: bool,
}

impl Listing {
    /// A listing from after a name on.
    pub fn new(after: Option<Box<str>>, limit: usize) -> Listing {
        Listing { cursor: after, last: None, left: limit, has_begun: false }
    }
}
