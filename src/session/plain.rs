//! Plain HTTP/1.1: requests in, intents and answers out, in order, on a connection that is kept.
//!
//! Publishing is what programs do many times a second, so its requests may follow each other without
//! waiting (pipelining): each answer is short and is said in the order of the intents. Every other
//! request is waited for: its answer may be large, and the next one is not looked at until the client has
//! taken it. **A limit on everything**: what a connection can make the server hold is one answer and one
//! read.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;

use super::draining::{Closing, Draining};
use super::guest::{self, Guest, Ways};
use super::heartbeat::Heartbeat;
use super::http::{self, Body as Length, FieldRoom, HeadEnd, Request};
use super::intent::{Intent, Question, Receipt};
use super::response::{After, Manner, Refusal};
use super::routes::{self, LIMIT_MAX, Query, Route};
use super::upgrade::{self, Protocol};
use super::walker::Walker;
use super::{Desk, Open, State, Streaming};
use crate::access::gate::Pass;
use crate::access::origin::{self, OriginVerdict};
use crate::close::Reason;
use crate::config::{Asset, Limits};
use crate::hub::Wish;
use crate::ids::{ChannelName, Peer, Since};
use crate::moment::Moment;
use crate::wire::command::{KEY_BYTES_MAX, check_json};
use crate::wire::{Form, Kind};

/// Between requests, or in a request's head.
#[derive(Debug)]
pub struct Head {
    received: Vec<u8>,
    stage: Stage,
    until: Moment,
    /// Answers that have not been said.
    owed: u32,
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come on a new connection.
    Fresh,
    /// A part of a head is there, and its end was looked for.
    Partial,
    /// A request was answered, and nothing has come since.
    Idle,
    /// What came behind a request that had to be answered first has yet to be looked at.
    Rest,
}

/// In a request's body.
#[derive(Debug)]
pub struct Body {
    order: Order,
    length: usize,
    received: Vec<u8>,
    until: Moment,
    owed: u32,
}

/// What is to be done with a body.
#[derive(Debug)]
struct Order {
    channel: ChannelName,
    kind: Kind,
    manner: Manner,
    key: Option<Box<str>>,
    client: Option<IpAddr>,
    pass: Pass,
}

/// A request has come whole, and its answer is waited for.
#[derive(Debug)]
pub struct Responding {
    /// What came behind it.
    rest: Vec<u8>,
    owed: u32,
    then: Then,
}

/// What becomes of the connection when all is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Next,
    Close(Reason),
    /// The peer has sent its end of file, and reads on.
    HalfClosed(Reason),
}

/// What a request comes to.
enum Outcome {
    /// The next one begins behind so many bytes.
    Next { consumed: usize },
    /// All that came is taken.
    Become(State),
    /// What follows are frames.
    Upgraded(State),
}

impl Head {
    pub(super) fn fresh(limits: &Limits, now: Moment) -> Head {
        let until = now.after(limits.handshake_timeout_ms);
        Head { received: Vec::new(), stage: Stage::Fresh, until, owed: 0 }
    }

    fn next(rest: Vec<u8>, limits: &Limits, now: Moment) -> Head {
        let stage = if rest.is_empty() { Stage::Idle } else { Stage::Rest };
        Head { received: rest, stage, until: now.after(limits.keep_alive_ms), owed: 0 }
    }

    pub(super) fn deadline(&self) -> Moment {
        self.until
    }

    /// Has nothing come that has yet to be answered?
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.stage, Stage::Fresh | Stage::Idle)
    }

    /// Does it wait for another request, after one that was answered?
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Why the connection ends if nothing more comes.
    pub(super) fn late(&self) -> Reason {
        if self.is_idle() { Reason::Idle } else { Reason::HandshakeTimeout }
    }

    /// What came behind the last request and has not been looked at.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        if self.stage != Stage::Rest {
            return Vec::new();
        }
        self.stage = Stage::Idle;
        std::mem::take(&mut self.received)
    }

    /// How much of `input` was taken, and the next state, if it is another.
    pub(super) fn receive(&mut self, input: &[u8], desk: &mut Desk<'_>) -> (usize, Option<State>) {
        let limits = desk.limits;
        let before = self.received.len();
        // A head nearly always comes in one piece; then it is judged where it lies.
        let bytes = if before == 0 {
            input
        } else {
            self.received.extend_from_slice(input);
            &self.received[..]
        };
        let end = match http::find_head_end(bytes, before) {
            HeadEnd::At(end) if end <= limits.head_bytes_max => Ok(end),
            HeadEnd::BareLf => Err(Refusal::bad("a line ends in LF without CR")),
            HeadEnd::Tls => Err(Refusal::bad("TLS is not spoken on this port: write http:// or ws://")),
            HeadEnd::Missing if bytes.len() < limits.head_bytes_max => {
                if before == 0 {
                    self.received.extend_from_slice(input);
                }
                if self.stage == Stage::Idle {
                    self.until = desk.now.after(limits.handshake_timeout_ms);
                }
                self.stage = Stage::Partial;
                return (input.len(), None);
            }
            HeadEnd::At(_) | HeadEnd::Missing => Err(Refusal::head_too_large(limits)),
        };
        let (taken, outcome) = match end {
            Ok(end) => (end - before, serve(&bytes[..end], &input[end - before..], self.owed, desk)),
            Err(refusal) => (input.len(), hang_up(&refusal, self.owed, desk)),
        };
        match outcome {
            Outcome::Next { consumed } => {
                self.received = Vec::new();
                self.stage = Stage::Idle;
                self.until = desk.now.after(limits.keep_alive_ms);
                self.owed += 1;
                (taken + consumed, None)
            }
            Outcome::Become(state) => (input.len(), Some(state)),
            Outcome::Upgraded(state) => (taken, Some(state)),
        }
    }

    /// The peer sends no more; the next state.
    pub(super) fn end_of_file(&self) -> State {
        half_close(self.owed)
    }

    pub(super) fn answered(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    /// The client has taken its answers. It was not read before, and its time begins now.
    pub(super) fn taken(&mut self, limits: &Limits, now: Moment) {
        self.until = now.after(match self.stage {
            Stage::Idle | Stage::Rest => limits.keep_alive_ms,
            Stage::Fresh | Stage::Partial => limits.handshake_timeout_ms,
        });
    }
}

impl Body {
    pub(super) fn deadline(&self) -> Moment {
        self.until
    }

    pub(super) fn receive(&mut self, input: &[u8], desk: &mut Desk<'_>) -> (usize, Option<State>) {
        let missing = self.length - self.received.len();
        if input.len() < missing {
            self.received.extend_from_slice(input);
            return (input.len(), None);
        }
        self.received.extend_from_slice(&input[..missing]);
        let order = Order {
            channel: self.order.channel.clone(),
            kind: self.order.kind,
            manner: std::mem::take(&mut self.order.manner),
            key: self.order.key.take(),
            client: self.order.client,
            pass: self.order.pass.take(),
        };
        let payload = Bytes::from(std::mem::take(&mut self.received));
        match place(order, payload, &input[missing..], self.owed, desk) {
            Outcome::Next { .. } => {
                let mut head = Head::next(Vec::new(), desk.limits, desk.now);
                head.owed = self.owed + 1;
                (missing, Some(State::Head(Box::new(head))))
            }
            Outcome::Become(state) | Outcome::Upgraded(state) => (input.len(), Some(state)),
        }
    }

    /// The peer sends no more, and this request will never be; the next state.
    pub(super) fn end_of_file(&self) -> State {
        half_close(self.owed)
    }

    pub(super) fn answered(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    /// How it is answered when its connection is closed: to the page that sent it, if one did.
    pub(super) fn last_manner(&self) -> Manner {
        Manner { after: After::Closed, ..self.order.manner.clone() }
    }

    /// The client has taken the answers before this request. Its time begins now.
    pub(super) fn taken(&mut self, limits: &Limits, now: Moment) {
        self.until = now.after(limits.body_timeout_ms);
    }
}

/// The peer's end of file has come; the state in which it gets what it is owed.
fn half_close(owed: u32) -> State {
    if owed == 0 {
        return State::Dead(Reason::EndOfFile);
    }
    let then = Then::HalfClosed(Reason::Served);
    State::Responding(Box::new(Responding { rest: Vec::new(), owed, then }))
}

impl Responding {
    /// More came behind the request. It is looked at when that is answered.
    pub(super) fn receive(&mut self, input: &[u8]) {
        if self.then == Then::Next {
            self.rest.extend_from_slice(input);
        }
    }

    pub(super) fn end_of_file(&mut self) {
        self.then = match self.then {
            // What came behind it has come whole, but for a request that will never be.
            Then::Next => Then::HalfClosed(Reason::Served),
            Then::Close(reason) | Then::HalfClosed(reason) => Then::HalfClosed(reason),
        };
    }

    /// One more answer has been queued; the next state, if that was the last that is owed.
    pub(super) fn answered(&mut self, limits: &Limits, now: Moment) -> Option<State> {
        self.owed = self.owed.saturating_sub(1);
        if self.owed > 0 {
            return None;
        }
        Some(match self.then {
            Then::Next => State::Head(Box::new(Head::next(std::mem::take(&mut self.rest), limits, now))),
            Then::Close(reason) => Draining::begin(reason, Closing::Flushing, limits, now),
            Then::HalfClosed(reason) => Draining::begin(reason, Closing::HalfClosed, limits, now),
        })
    }
}

/// Waits for an answer that an intent has just asked for.
fn respond(after: After, reason: Reason, rest: &[u8], owed: u32) -> Outcome {
    let (rest, then) = match after {
        After::Closed => (Vec::new(), Then::Close(reason)),
        After::Kept | After::KeptAloud => (rest.to_vec(), Then::Next),
    };
    Outcome::Become(State::Responding(Box::new(Responding { rest, owed: owed + 1, then })))
}

/// Says no, and ends the connection: nobody can tell where the next request begins, or it is not worth
/// reading what comes before that.
fn hang_up(refusal: &Refusal, owed: u32, desk: &mut Desk<'_>) -> Outcome {
    refuse(refusal, Manner::last(), &[], owed, desk)
}

/// Says no.
fn refuse(refusal: &Refusal, manner: Manner, rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    desk.metrics.reject(refusal.code());
    desk.intents.push(Intent::Answer(Bytes::from(refusal.respond(&manner))));
    respond(manner.after, Reason::Refused { status: refusal.status() }, rest, owed)
}

/// Serves a request whose head is complete; `rest` is what came behind it.
fn serve(head: &[u8], rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    let mut room = FieldRoom::new(desk.limits);
    match http::parse(head, &mut room, desk.limits) {
        // Its frames may be answered at once, so the answers before it have to be out.
        Ok(request) if owed > 0 && request.fields.lists("upgrade", "websocket") => {
            let rest = [head, rest].concat();
            Outcome::Become(State::Responding(Box::new(Responding { rest, owed, then: Then::Next })))
        }
        Ok(request) => dispatch(&request, rest, owed, desk),
        Err(refusal) => hang_up(&refusal, owed, desk),
    }
}

fn dispatch(request: &Request<'_>, rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    let mut manner = request.manner();
    // A program that names no host at all is no browser.
    if desk.gate.only_this_machine
        && let Ok(Some(host)) = request.fields.one("host")
        && !origin::names_this_machine(host)
    {
        let message = "this server is open to its own machine only, by the name localhost or its address; \
                       --anonymous or a key lets it answer to other names";
        return hang_up(&Refusal::new(421, "misdirected", message), owed, desk);
    }
    let has_body = !matches!(request.body, Length::Unsaid | Length::Bytes(0));
    let route = match routes::find(request.path, &desk.site.assets) {
        Ok(route) => route,
        Err(refusal) => {
            if has_body || request.fields.lists("connection", "upgrade") {
                manner.after = After::Closed;
            }
            // Nothing is done, so nobody is kept from asking; a page that may ask elsewhere is told what was wrong.
            if share(request, &mut manner, desk).is_ok()
                && manner.allow_origin.is_some()
                && request.method == "OPTIONS"
            {
                // A browser shows it the answer to what it wants to ask, and only if this one is good.
                return preflight("GET, POST, OPTIONS", manner, rest, owed, desk);
            }
            return refuse(&refusal, manner, rest, owed, desk);
        }
    };
    let is_web_socket = matches!(route, Route::WebSocket { .. });
    let takes_body = matches!(route, Route::Publish { .. }) && request.method == "POST";
    if is_web_socket || (has_body && !takes_body) {
        // Whoever asked for a WebSocket and gets none has nothing else to say, and a body that nobody wants
        // is not read.
        manner.after = After::Closed;
    }
    if route.is_shared()
        && let Err(refusal) = share(request, &mut manner, desk)
    {
        manner.after = After::Closed;
        return refuse(&refusal, manner, rest, owed, desk);
    }
    if request.method == "OPTIONS" && route.is_shared() {
        return preflight(route.methods(), manner, rest, owed, desk);
    }
    if !route.methods().split(", ").any(|method| method == request.method) {
        let methods = route.methods();
        let message = format!("this path takes {methods}");
        let refusal = Refusal::new(405, "method_not_allowed", message).with("Allow", methods);
        return refuse(&refusal, manner, rest, owed, desk);
    }
    if has_body && !takes_body {
        let refusal = Refusal::bad("this request takes no body");
        return refuse(&refusal, manner, rest, owed, desk);
    }
    let query = match Query::parse(request.query) {
        Ok(query) => query,
        Err(refusal) => {
            if takes_body {
                manner.after = After::Closed;
            }
            return refuse(&refusal, manner, rest, owed, desk);
        }
    };
    let pass = match enter(request, &route, desk) {
        Ok(pass) => pass,
        Err(refusal) => {
            if takes_body {
                manner.after = After::Closed;
            }
            return refuse(&refusal, manner, rest, owed, desk);
        }
    };
    match route {
        Route::WebSocket { channel } => open_web_socket(request, channel, &query, owed, desk),
        Route::Events { channel } => stream_events(request, channel, pass, &query, manner, rest, owed, desk),
        Route::Publish { channel } => take_order(request, channel, pass, manner, rest, owed, desk),
        Route::Channels => {
            let Query { prefix, after, limit, .. } = query;
            let question = Question::Channels {
                prefix: prefix.unwrap_or_default(),
                after,
                limit: limit.unwrap_or(LIMIT_MAX),
                pass,
            };
            ask(question, manner, rest, owed, desk)
        }
        Route::Channel { channel } => ask(Question::Channel { channel }, manner, rest, owed, desk),
        Route::History { channel } => {
            let since = query.since.unwrap_or(Since::Earliest);
            let limit = query.limit.unwrap_or(LIMIT_MAX);
            ask(Question::History { channel, since, limit }, manner, rest, owed, desk)
        }
        Route::Tickets => {
            let grant = pass.unwrap_or_else(|| desk.gate.anonymous.clone());
            ask(Question::Ticket { grant }, manner, rest, owed, desk)
        }
        Route::Connections => {
            let Some(sub) = query.sub else {
                let refusal = Refusal::new(400, "bad_query", "sub is missing: whose connections");
                return refuse(&refusal, manner, rest, owed, desk);
            };
            let after = manner.after;
            desk.intents.push(Intent::Expel { sub, manner });
            respond(after, Reason::Served, rest, owed)
        }
        Route::Ready => ask(Question::Ready, manner, rest, owed, desk),
        Route::Metrics => ask(Question::Metrics, manner, rest, owed, desk),
        Route::Health => {
            let response = manner.respond(200, "text/plain", &[("Cache-Control", "no-store")], b"ok\n");
            answer(response, &manner, rest, owed, desk)
        }
        Route::Asset(asset) => answer(asset_response(asset, &manner), &manner, rest, owed, desk),
    }
}

/// Judges who asks, and whether it may. What there is to see without a right asks nobody for one.
fn enter(request: &Request<'_>, route: &Route, desk: &mut Desk<'_>) -> Result<Pass, Refusal> {
    let ways = match route {
        Route::Health | Route::Ready | Route::Metrics | Route::Asset(_) => return Ok(None),
        // A browser does not see how its upgrade is answered: what its token is worth is said behind it.
        Route::WebSocket { .. } => return Ok(None),
        Route::Events { .. } => Ways::Ticket,
        _ => Ways::Plain,
    };
    let pass = guest::admit(request, ways, desk).map_err(guest::unauthorized)?;
    let grant = desk.gate.grant(&pass);
    let may = match route {
        Route::Events { channel } | Route::Channel { channel } | Route::History { channel } => {
            grant.may_subscribe(channel)
        }
        Route::Publish { channel } => grant.may_publish(channel),
        Route::Connections => grant.admin,
        // A ticket stands for a token.
        Route::Tickets => pass.is_some() || desk.gate.verifier.is_none(),
        Route::Channels => !desk.gate.is_shut() || pass.is_some(),
        _ => true,
    };
    if may { Ok(pass) } else { Err(guest::forbidden(&pass, desk.gate)) }
}

fn ask(question: Question, manner: Manner, rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    let after = manner.after;
    desk.intents.push(Intent::Ask { question, manner });
    respond(after, Reason::Served, rest, owed)
}

fn answer(response: Vec<u8>, manner: &Manner, rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    desk.intents.push(Intent::Answer(Bytes::from(response)));
    respond(manner.after, Reason::Served, rest, owed)
}

/// The page may load its own files and talk to its own server, and nothing else. The files are public, and
/// pages of any origin may import the client module.
fn asset_response(asset: &Asset, manner: &Manner) -> Vec<u8> {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let fields = [
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Access-Control-Allow-Origin", "*"),
        ("Cache-Control", "no-cache"),
    ];
    manner.respond(200, asset.content_type, &fields, asset.bytes)
}

/// May the page that sends this request do so, and may it read the answer (Fetch, CORS protocol)?
///
/// A browser lets any page send a simple POST, and only hides the answer: so a page that is not allowed
/// to read may not publish either.
fn share(request: &Request<'_>, manner: &mut Manner, desk: &Desk<'_>) -> Result<(), Refusal> {
    match judge(request, desk) {
        OriginVerdict::Absent | OriginVerdict::SameHost => Ok(()),
        OriginVerdict::Allowed => {
            let origin = request.fields.one("origin").ok().flatten();
            manner.allow_origin = origin.and_then(|origin| std::str::from_utf8(origin).ok()).map(Box::from);
            Ok(())
        }
        OriginVerdict::Foreign if request.method == "GET" || request.method == "HEAD" => {
            // Which of two a browser has meant cannot be known.
            if request.fields.one("origin").is_err() { Err(forbidden_origin()) } else { Ok(()) }
        }
        OriginVerdict::Foreign => Err(forbidden_origin()),
    }
}

fn judge(request: &Request<'_>, desk: &Desk<'_>) -> OriginVerdict {
    match (request.fields.one("origin"), request.fields.one("host")) {
        (Ok(origin), Ok(host)) => origin::judge(origin, host, &desk.site.origins),
        _ => OriginVerdict::Foreign,
    }
}

fn forbidden_origin() -> Refusal {
    let message = "pages of this origin may not ask here; --origin allows them";
    Refusal::new(403, "forbidden_origin", message)
}

fn preflight(methods: &'static str, manner: Manner, rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    let mut fields = vec![("Allow", methods)];
    if manner.allow_origin.is_some() {
        fields.push(("Access-Control-Allow-Methods", methods));
        let headers = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID";
        fields.push(("Access-Control-Allow-Headers", headers));
        // Browsers ask again after ten minutes at the latest (Chromium) or at the earliest (others: a day).
        fields.push(("Access-Control-Max-Age", "600"));
    }
    answer(manner.respond(204, "", &fields, b""), &manner, rest, owed, desk)
}

/// The client that a request is of, if a trusted proxy sent it for somebody.
fn client_of(request: &Request<'_>, desk: &Desk<'_>) -> Option<IpAddr> {
    desk.door.client_behind(*desk.peer, request.fields.all("x-forwarded-for"))
}

/// A connection becomes one client's, for as long as it lasts. If it came from that client itself, it has been
/// counted since it came; if it came through a proxy, it is from now on.
fn come_in(request: &Request<'_>, desk: &mut Desk<'_>) -> Result<(), Refusal> {
    let Some(client) = client_of(request, desk) else { return Ok(()) };
    if client != desk.peer.ip().to_canonical() {
        *desk.peer = Peer::from(client);
    }
    desk.door.enter(desk.peer, desk.now).map_err(|over| {
        desk.metrics.limit(over.limit);
        super::farewell(over.reason(), desk.limits)
    })
}

fn open_web_socket(
    request: &Request<'_>,
    channel: Option<ChannelName>,
    query: &Query,
    owed: u32,
    desk: &mut Desk<'_>,
) -> Outcome {
    let (response, protocol) = match upgrade::accept(request) {
        Ok(accepted) => accepted,
        Err(refusal) => return hang_up(&refusal, owed, desk),
    };
    // No rule of a browser's stops a page from opening a WebSocket to another site (RFC 6455 10.2).
    if !matches!(
        judge(request, desk),
        OriginVerdict::Absent | OriginVerdict::SameHost | OriginVerdict::Allowed
    ) {
        return hang_up(&forbidden_origin(), owed, desk);
    }
    if let Err(refusal) = come_in(request, desk) {
        return hang_up(&refusal, owed, desk);
    }
    let pass = guest::admit(request, Ways::Subprotocol, desk);
    desk.outbox.queue(Rc::new(Bytes::from(response)));
    let pass = match pass {
        Ok(pass) => pass,
        Err(why) => {
            let reason = Reason::BadToken { why };
            return Outcome::Upgraded(super::begin_close(reason, Walker::new(), desk));
        }
    };
    let form = if protocol == Protocol::Raw { Form::Raw } else { Form::Envelope };
    let wish = Wish { form, since: query.since.unwrap_or(Since::Now), echo: query.echo };
    let channel = match protocol {
        Protocol::Raw => Some(channel.unwrap_or_else(ChannelName::main)),
        Protocol::V1 => channel,
    };
    let mut subscription = channel.map(|channel| (channel, wish));
    let guest = if pass.is_none() && desk.gate.is_shut() {
        Some(Guest::expected(subscription.take(), desk))
    } else {
        Guest::of(pass.clone(), desk)
    };
    match (protocol, subscription) {
        (Protocol::V1, subscription) => desk.intents.push(Intent::Greet { subscription, pass }),
        (Protocol::Raw, Some((channel, wish))) => {
            desk.intents.push(Intent::Subscribe { channel, wish, pass, reference: None });
        }
        (Protocol::Raw, None) => {}
    }
    Outcome::Upgraded(State::Open(Open::new(protocol, guest, desk)))
}

#[allow(clippy::too_many_arguments)]
fn stream_events(
    request: &Request<'_>,
    channel: ChannelName,
    pass: Pass,
    query: &Query,
    manner: Manner,
    rest: &[u8],
    owed: u32,
    desk: &mut Desk<'_>,
) -> Outcome {
    // A browser that comes back sends the cursor that it has reached by itself; it is newer than the one in
    // the URL that the page made. What it has not is an empty text.
    let cursor = match request.fields.one("last-event-id") {
        Ok(None | Some(b"")) => Ok(query.since),
        Ok(Some(id)) => Since::parse(id).map(Some).map_err(|_| ()),
        Err(_) => Err(()),
    };
    let Ok(since) = cursor else {
        let refusal = Refusal::new(400, "bad_cursor", "Last-Event-ID is an id as an event carries it");
        return refuse(&refusal, manner, rest, owed, desk);
    };
    if let Err(refusal) = come_in(request, desk) {
        let manner = Manner { after: After::Closed, ..manner };
        return refuse(&refusal, manner, rest, owed, desk);
    }
    let stream = manner.stream("text/event-stream");
    desk.intents.push(Intent::Say(Bytes::from(stream)));
    let wish = Wish { form: Form::Event, since: since.unwrap_or(Since::Now), echo: true };
    let guest = Guest::of(pass.clone(), desk).map(Box::new);
    desk.intents.push(Intent::Subscribe { channel, wish, pass, reference: None });
    Outcome::Become(State::Streaming(Box::new(Streaming { guest, heartbeat: Heartbeat::heard(desk) })))
}

/// A request to publish: its head is judged before its body is read.
fn take_order(
    request: &Request<'_>,
    channel: ChannelName,
    pass: Pass,
    manner: Manner,
    rest: &[u8],
    owed: u32,
    desk: &mut Desk<'_>,
) -> Outcome {
    let unread = Manner { after: After::Closed, ..manner.clone() };
    let Length::Bytes(length) = request.body else {
        let refusal =
            Refusal::new(411, "length_required", "a message has a Content-Length, 0 if it is empty");
        return refuse(&refusal, unread, rest, owed, desk);
    };
    let body_bytes_max = desk.limits.body_bytes_max;
    let Some(length) = usize::try_from(length).ok().filter(|&length| length <= body_bytes_max) else {
        let refusal = Refusal::new(413, "too_big", format!("the body is over {body_bytes_max} bytes"));
        return refuse(&refusal, unread, rest, owed, desk);
    };
    let key = match request.fields.one("idempotency-key").map(|key| key.map(std::str::from_utf8)) {
        Ok(None) => None,
        Ok(Some(Ok(key))) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(Box::from(key)),
        _ => {
            let message = format!("Idempotency-Key comes once and has 1 to {KEY_BYTES_MAX} characters");
            return refuse(&Refusal::new(400, "bad_key", message), unread, rest, owed, desk);
        }
    };
    let kind = match request.fields.one("content-type") {
        Ok(media_type) => kind_of(media_type.unwrap_or_default()),
        Err(_) => {
            return refuse(&Refusal::bad("Content-Type comes more than once"), unread, rest, owed, desk);
        }
    };
    let asks_first = match request.fields.one("expect") {
        // RFC 9110 10.1.1: HTTP/1.0 does not know it, and must not be told to go on.
        _ if request.minor_version == 0 => false,
        Ok(None) => false,
        Ok(Some(value)) if value.eq_ignore_ascii_case(b"100-continue") => true,
        _ => {
            let refusal = Refusal::new(417, "expectation_failed", "of Expect only 100-continue is known");
            return refuse(&refusal, unread, rest, owed, desk);
        }
    };
    let client = client_of(request, desk);
    let order = Order { channel, kind, manner, key, client, pass };
    if rest.len() >= length {
        return place(order, Bytes::copy_from_slice(&rest[..length]), &rest[length..], owed, desk);
    }
    // Nor when a part of the body is there already.
    if asks_first && rest.is_empty() {
        desk.intents.push(Intent::Say(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n")));
    }
    let until = desk.now.after(desk.limits.body_timeout_ms);
    // Not all of it at once: a head that announces much is cheap to send.
    let mut received = Vec::with_capacity(length.min(16 << 10));
    received.extend_from_slice(rest);
    Outcome::Become(State::Body(Box::new(Body { order, length, received, until, owed })))
}

/// What a body of this media type is published as.
fn kind_of(media_type: &[u8]) -> Kind {
    let essence = media_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        Kind::Data
    } else if essence.eq_ignore_ascii_case(b"application/octet-stream") {
        Kind::Binary
    } else {
        Kind::Text
    }
}

/// The body is complete: publish it.
fn place(order: Order, payload: Bytes, rest: &[u8], owed: u32, desk: &mut Desk<'_>) -> Outcome {
    let Order { channel, kind, manner, key, client, pass } = order;
    let bad = match kind {
        Kind::Binary => None,
        Kind::Text => std::str::from_utf8(&payload).is_err().then(|| {
            let message = "the body is not UTF-8; application/octet-stream takes any bytes";
            Refusal::new(400, "not_utf8", message)
        }),
        Kind::Data => check_json(&payload).err().map(|why| Refusal::new(400, why.code, why.message)),
    };
    if let Some(refusal) = bad {
        return refuse(&refusal, manner, rest, owed, desk);
    }
    let (after, consumed) = (manner.after, payload.len());
    let receipt = Receipt::Response { manner, key, client };
    desk.intents.push(Intent::Publish { channel: Some(channel), kind, payload, receipt, pass });
    match after {
        After::Closed => respond(after, Reason::Served, rest, owed),
        After::Kept | After::KeptAloud => Outcome::Next { consumed },
    }
}
