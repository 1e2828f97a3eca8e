//! The state of a connection that waits for the responses to its requests, and is not read meanwhile.

use super::head::Head;
use super::query::PendingQuery;
use crate::close::Reason;
use crate::config::Limits;
use crate::session::State;
use crate::session::closing::{CloseStep, Closing};
use crate::time::LoopTime;

/// Waiting for the response to a complete request.
#[derive(Debug)]
pub struct Responding {
    /// Input that arrived after the request.
    unread: Vec<u8>,
    pending_responses: u32,
    then: AfterResponses,
    /// The ticket of the request is being redeemed. The request is unread again, and is processed after that.
    is_redeeming: bool,
    /// A query, until its response is complete. It is the last request: those before it were publish requests.
    pub(in crate::session) query: Option<Box<PendingQuery>>,
}

/// The connection's state after the last pending response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum AfterResponses {
    Next,
    Close(Reason),
    /// The peer has sent EOF and still reads (half-closed).
    HalfClosed(Reason),
}

impl Responding {
    pub(in crate::session) fn begin(
        unread: Vec<u8>,
        pending_responses: u32,
        then: AfterResponses,
        query: Option<Box<PendingQuery>>,
    ) -> State {
        let is_redeeming = false;
        State::Responding(Box::new(Responding { unread, pending_responses, then, is_redeeming, query }))
    }

    /// Makes a request wait until a shared log has redeemed its ticket. `request`: the request, and the input after it.
    pub(in crate::session) fn begin_redeeming(request: Vec<u8>, pending_responses: u32) -> State {
        State::Responding(Box::new(Responding {
            unread: request,
            pending_responses: pending_responses + 1,
            then: AfterResponses::Next,
            is_redeeming: true,
            query: None,
        }))
    }

    /// The state after the peer's EOF: pending responses are still sent.
    pub(in crate::session) fn half_closed(pending_responses: u32) -> State {
        if pending_responses == 0 {
            return State::dead(Reason::EndOfFile);
        }
        let then = AfterResponses::HalfClosed(Reason::Served);
        Responding::begin(Vec::new(), pending_responses, then, None)
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.unread.capacity()
    }

    /// Returns true if bytes arrived after the request.
    pub(in crate::session) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Returns true if the response to its query is next.
    pub(in crate::session) fn has_query(&self) -> bool {
        self.pending_responses == 1 && self.query.is_some()
    }

    /// Returns true if the head of the response to its query is sent.
    pub(in crate::session) fn has_begun(&self) -> bool {
        self.query.as_ref().is_some_and(|query| query.progress.has_begun())
    }

    /// Returns true if it waits for the response to a publish, which a shared log has to confirm.
    pub(in crate::session) fn awaits_log(&self) -> bool {
        self.query.is_none() && !self.is_redeeming
    }

    /// Closes the connection after the last response.
    pub(in crate::session) fn close_after(&mut self, reason: Reason) {
        self.unread = Vec::new();
        self.then = match self.then {
            AfterResponses::HalfClosed(_) => AfterResponses::HalfClosed(reason),
            AfterResponses::Next | AfterResponses::Close(_) => AfterResponses::Close(reason),
        };
    }

    /// Keeps input that arrived after the request; it is parsed after the response.
    pub(in crate::session) fn receive(&mut self, input: &[u8]) {
        if self.then == AfterResponses::Next {
            self.unread.extend_from_slice(input);
        }
    }

    /// Handles the peer's EOF.
    pub(in crate::session) fn end_of_file(&mut self) {
        self.then = match self.then {
            // The unread input ends in a request that will never be complete.
            AfterResponses::Next => AfterResponses::HalfClosed(Reason::Served),
            AfterResponses::Close(reason) | AfterResponses::HalfClosed(reason) => {
                AfterResponses::HalfClosed(reason)
            }
        };
    }

    /// A response was queued. Returns the next state if it was the last pending one.
    pub(in crate::session) fn responded(&mut self, limits: &Limits, now: LoopTime) -> Option<State> {
        self.pending_responses = self.pending_responses.saturating_sub(1);
        if self.pending_responses > 0 {
            return None;
        }
        Some(match self.then {
            AfterResponses::Next => {
                State::Head(Box::new(Head::next(std::mem::take(&mut self.unread), 0, limits, now)))
            }
            AfterResponses::Close(reason) => Closing::begin(reason, CloseStep::Flushing, limits, now),
            AfterResponses::HalfClosed(reason) => Closing::begin(reason, CloseStep::HalfClosed, limits, now),
        })
    }
}
