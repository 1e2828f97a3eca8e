//! One request being answered: how its response is framed, and how the connection continues after it.
//!
//! Programs publish many times a second, so publish requests may be pipelined up to the connection's share of the turn:
//! each response is short, and responses are sent in the order of the intents. Every other request is processed alone:
//! its response may be large, and the next request is not parsed until the client has read it. **A limit on
//! everything**: a connection can make the server hold one response and one read.

use bytes::Bytes;

use super::query::{PendingQuery, QueryProgress};
use super::request::Request;
use super::responding::{AfterResponses, Responding};
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use crate::access::ticket::Redemption;
use crate::close::Reason;
use crate::session::auth_state::{self, CredentialSources};
use crate::session::intent::{Intent, Query};
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};
use crate::session::{LogMode, SessionContext, State};

/// A request being answered.
#[derive(Debug)]
pub(super) struct Exchange<'a, 'ctx> {
    pub(super) ctx: &'a mut SessionContext<'ctx>,
    /// The framing of the response.
    pub(super) options: ResponseOptions,
    /// The head; empty once it is processed.
    pub(super) head: &'a [u8],
    /// The input after the head, or after the body once that is received.
    pub(super) unread: &'a [u8],
    /// Responses to earlier requests that are not queued yet.
    pub(super) pending_responses: u32,
    /// An error closes the connection: the request's body is not read, and the next request begins after it.
    pub(super) closes_on_error: bool,
    /// The client is an EventSource.
    pub(super) is_event_source: bool,
}

/// The result of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All input is consumed, and the request is not complete.
    Incomplete,
    /// The request is complete, and its response is pending. The last `unread_bytes` of the input follow it.
    Next { unread_bytes: usize },
    /// All input is consumed.
    Become(State),
    /// The connection is a WebSocket. The last `unread_bytes` of the input are frames.
    Upgraded { state: State, unread_bytes: usize },
}

impl<'a, 'ctx> Exchange<'a, 'ctx> {
    /// A request that is not parsed. If it is invalid, the beginning of the next request cannot be determined, so an
    /// error closes the connection.
    pub(super) fn new(
        unread: &'a [u8],
        pending_responses: u32,
        ctx: &'a mut SessionContext<'ctx>,
    ) -> Exchange<'a, 'ctx> {
        let options = ResponseOptions::last(ctx.authenticator.http_date());
        Exchange::with(options, unread, pending_responses, ctx)
    }

    /// A request whose head was accepted earlier.
    pub(super) fn with(
        options: ResponseOptions,
        unread: &'a [u8],
        pending_responses: u32,
        ctx: &'a mut SessionContext<'ctx>,
    ) -> Exchange<'a, 'ctx> {
        Exchange {
            ctx,
            options,
            head: &[],
            unread,
            pending_responses,
            closes_on_error: false,
            is_event_source: false,
        }
    }

    /// Frames the response as the request asks for it.
    pub(super) fn frame_for(&mut self, request: &Request<'_>) {
        self.options = request.response_options(self.options.date.clone());
    }

    /// Makes the response the last one of the connection.
    pub(super) fn close_after(&mut self) {
        self.options.after = ConnectionHeader::Close;
    }

    /// Completes the request. This is the only place where an error becomes a response.
    pub(super) fn finish(mut self, result: Result<Outcome, HttpError>) -> Outcome {
        result.unwrap_or_else(|error| self.reject(&error))
    }

    fn reject(&mut self, error: &HttpError) -> Outcome {
        self.ctx.metrics.reject(error.code());
        if self.is_event_source && error.is_temporary() {
            // An EventSource never reconnects after a status other than 200, so it gets a stream that sets the
            // reconnection time, and ends.
            self.close_after();
            return self.respond(self.options.ended_event_stream());
        }
        // Verifying a token is expensive. A client that sent an invalid one has to reconnect, which is rate limited.
        if self.closes_on_error || error.status() == 401 {
            self.close_after();
        }
        self.ctx.intents.push(Intent::Respond(Bytes::from(error.respond(&self.options))));
        self.await_response(Reason::Rejected { status: error.status() })
    }

    /// Sends a complete response.
    pub(super) fn respond(&mut self, response: Vec<u8>) -> Outcome {
        self.ctx.intents.push(Intent::Respond(Bytes::from(response)));
        self.await_response(Reason::Served)
    }

    /// Has the server send the response.
    pub(super) fn query(&mut self, query: Query) -> Outcome {
        self.ctx.intents.push(Intent::Query);
        let pending = PendingQuery { query, options: self.options.clone(), progress: QueryProgress::Pending };
        self.wait(Reason::Served, Some(Box::new(pending)))
    }

    /// Requests that the shared log redeem the ticket of the request, if it has one, and returns the state that waits
    /// for the result. Returns `None` if there is no ticket, or if the request is processed again with the result.
    ///
    /// # Errors
    /// The log cannot be reached, or has not confirmed the request.
    pub(super) fn redeem_in_log(
        &mut self,
        request: &Request<'_>,
        sources: CredentialSources<'_>,
    ) -> Result<Option<Outcome>, HttpError> {
        let Some(hash) = auth_state::ticket_for_log(request, sources, self.ctx) else { return Ok(None) };
        match self.ctx.authenticator.tickets.take_redemption(self.ctx.id, &hash) {
            Some(Redemption::LogDown) => {
                Err(Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS }.http())
            }
            Some(Redemption::Unconfirmed) => Err(Rejection::Unconfirmed.http()),
            Some(redemption) => {
                self.ctx.authenticator.tickets.keep_redemption(self.ctx.id, hash, redemption);
                Ok(None)
            }
            None => {
                let stream = sources.stream().map(Box::from);
                self.ctx.intents.push(Intent::RedeemTicket { hash, stream });
                let again = [self.head, self.unread].concat();
                Ok(Some(Outcome::Become(Responding::begin_redeeming(again, self.pending_responses))))
            }
        }
    }

    /// Waits for the response, which was requested by an intent. `reason`: why the connection is closed after it.
    pub(super) fn await_response(&self, reason: Reason) -> Outcome {
        self.wait(reason, None)
    }

    fn wait(&self, reason: Reason, query: Option<Box<PendingQuery>>) -> Outcome {
        let (unread, then) = match self.options.after {
            ConnectionHeader::Close => (Vec::new(), AfterResponses::Close(reason)),
            ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader => {
                (self.unread.to_vec(), AfterResponses::Next)
            }
        };
        Outcome::Become(Responding::begin(unread, self.pending_responses + 1, then, query))
    }

    /// Continues with the next request, unless the responses to those before it have to be sent first.
    pub(super) fn pipeline(&self) -> Outcome {
        // A shared log acknowledges later, and the response to a later request must not overtake that.
        let waits_for_log = self.ctx.log_mode != LogMode::Own;
        let must_wait = waits_for_log || self.ctx.cost >= self.ctx.cost_max && !self.unread.is_empty();
        match self.options.after {
            ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader if !must_wait => {
                Outcome::Next { unread_bytes: self.unread.len() }
            }
            _ => self.await_response(Reason::Served),
        }
    }

    /// The connection is a WebSocket from now on.
    pub(super) fn upgrade(&self, state: State) -> Outcome {
        Outcome::Upgraded { state, unread_bytes: self.unread.len() }
    }
}
