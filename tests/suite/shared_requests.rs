//! Requests to one of several nodes that share a log, which concern all of them: disconnecting a user, tickets, and
//! numbers of subscribers. Method: as in [`crate::shared_log`].

use std::rc::Rc;

use oyez::access::authenticator::Authenticator;
use oyez::access::grant::Grant;
use oyez::close::Reason;
use oyez::config::Limits;
use oyez::ids::{ClientIds, RunId, SlotId};
use oyez::session::State;
use serde_json::{Value, json};

use crate::support::auth_server::{bearer, claims, sign, verifier};
use crate::support::cluster::{Cluster, TIMEOUT_MS};
use crate::support::frames::{CLOSE, upgrade_with};
use crate::support::http;
use crate::support::log_server::{LogData, LogServer};
use crate::support::rig::{Behavior, Rig};

/// Servers with the same key.
fn with_keys(count: u32) -> Cluster {
    let mut cluster = Cluster::of(count);
    for node in &mut cluster.nodes {
        node.rig.engine.shared.authenticator = authenticator();
    }
    cluster
}

fn authenticator() -> Authenticator {
    let anonymous = Rc::new(Grant::default());
    Authenticator { verifier: Some(verifier()), anonymous, ..Authenticator::open(10) }
}

fn token(rig: &Rig, sub: &str) -> String {
    let mut claims = claims(sub, &["*"], &["*"], rig.unix_now());
    claims.oyez.admin = sub == "root";
    bearer(&sign(&claims))
}

/// Connects a user to a channel.
fn connect(cluster: &mut Cluster, at: usize, sub: &str) -> SlotId {
    let rig = cluster.rig(at);
    let head = upgrade_with("/ws/a", &token(rig, sub));
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, head.as_bytes());
    rig.turn();
    rig.skip_head(id);
    id
}

/// Sends a request, and returns the connection on which the response arrives.
fn request(cluster: &mut Cluster, at: usize, method: &str, path: &str, sub: &str) -> SlotId {
    let rig = cluster.rig(at);
    let head = http::request(method, path, &token(rig, sub));
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, head.as_bytes());
    rig.turn();
    id
}

fn response(cluster: &mut Cluster, at: usize, id: SlotId) -> (u16, Value) {
    let mut responses = cluster.rig(at).responses(id);
    assert_eq!(responses.len(), 1);
    let response = responses.remove(0);
    (response.status, response.json())
}

/// The code of the close frame that the connection has received.
fn closed_with(cluster: &mut Cluster, at: usize, id: SlotId) -> Option<u16> {
    let frames = cluster.rig(at).frames(id);
    frames.iter().find(|frame| frame.opcode == CLOSE).map(|frame| frame.close_code().0)
}

#[test]
fn user_is_disconnected_on_all_nodes_and_their_results_are_added_up() {
    let mut cluster = with_keys(3);
    let theirs = [0, 1, 1, 2].map(|at| (at, connect(&mut cluster, at, "alice")));
    let other = connect(&mut cluster, 1, "bob");
    let id = request(&mut cluster, 0, "DELETE", "/v1/connections?sub=alice", "root");
    assert!(cluster.rig(0).responses(id).is_empty(), "the other nodes have not responded");
    cluster.settle();
    for (at, id) in theirs {
        assert_eq!(closed_with(&mut cluster, at, id), Some(4003));
    }
    assert_eq!(closed_with(&mut cluster, 1, other), None);
    let (status, body) = response(&mut cluster, 0, id);
    assert_eq!((status, body), (200, json!({"closed": 4, "nodes": 3, "silent": 0})));
}

#[test]
fn silent_node_is_named_and_closes_the_connections_later() {
    let mut cluster = with_keys(3);
    let theirs = [0, 1, 2].map(|at| connect(&mut cluster, at, "alice"));
    cluster.nodes[2].is_cut = true;
    let id = request(&mut cluster, 0, "DELETE", "/v1/connections?sub=alice", "root");
    cluster.advance_ms(1_900);
    assert!(cluster.rig(0).responses(id).is_empty(), "the third node may respond yet");
    cluster.advance_ms(200);
    cluster.settle();
    let (status, body) = response(&mut cluster, 0, id);
    assert_eq!((status, body), (200, json!({"closed": 2, "nodes": 3, "silent": 1})));
    assert_eq!(closed_with(&mut cluster, 2, theirs[2]), None);
    cluster.nodes[2].is_cut = false;
    let entries = cluster.log.data.log.len();
    cluster.settle();
    assert_eq!(closed_with(&mut cluster, 2, theirs[2]), Some(4003));
    assert_eq!(cluster.log.data.log.len(), entries, "no node waits for its result");
}

#[test]
fn user_is_disconnected_on_the_requested_node_while_the_log_is_down() {
    let mut cluster = with_keys(2);
    let theirs = [0, 1].map(|at| connect(&mut cluster, at, "alice"));
    cluster.stop_log();
    let id = request(&mut cluster, 0, "DELETE", "/v1/connections?sub=alice", "root");
    cluster.settle();
    assert_eq!(closed_with(&mut cluster, 0, theirs[0]), Some(4003));
    cluster.advance_ms(TIMEOUT_MS + 100);
    let (status, body) = response(&mut cluster, 0, id);
    assert_eq!((status, &body["error"]["code"]), (503, &"backplane_down".into()));
    cluster.log.is_alive = true;
    cluster.advance_ms(3_000);
    assert_eq!(closed_with(&mut cluster, 1, theirs[1]), None, "the request was rejected");
}

/// Issues a ticket, and returns it.
fn ticket(cluster: &mut Cluster, at: usize, sub: &str) -> String {
    let id = request(cluster, at, "POST", "/v1/tickets", sub);
    cluster.settle();
    let (status, body) = response(cluster, at, id);
    assert_eq!((status, &body["expires_ms"]), (200, &30_000.into()), "{body}");
    body["ticket"].as_str().unwrap().to_owned()
}

/// Sends an upgrade request with a ticket, and a message in the same segment.
fn open_with(cluster: &mut Cluster, at: usize, ticket: &str) -> SlotId {
    let rig = cluster.rig(at);
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, crate::support::frames::upgrade(&format!("/ws/a?ticket={ticket}")).as_bytes());
    rig.send_text(id, "first");
    rig.turn();
    id
}

/// Opens an event stream with a ticket.
fn stream_with(cluster: &mut Cluster, at: usize, ticket: &str) -> SlotId {
    let rig = cluster.rig(at);
    let id = rig.connect(Behavior::Cooperative);
    let lines = "Accept: text/event-stream\r\n";
    rig.send(id, http::request("GET", &format!("/sse/a?ticket={ticket}"), lines).as_bytes());
    rig.turn();
    cluster.settle();
    id
}

fn is_streaming(cluster: &mut Cluster, at: usize, id: SlotId) -> bool {
    cluster.rig(at).engine.slots.get(id).is_some_and(|slot| matches!(slot.state, State::Streaming(_)))
}

/// The status of the response on a connection; 0: none.
fn status(cluster: &mut Cluster, at: usize, id: SlotId) -> u16 {
    let text = String::from_utf8_lossy(&cluster.rig(at).pipe(id).outgoing).into_owned();
    text.split(' ').nth(1).map_or(0, |status| status.parse().unwrap())
}

/// Returns true if the ticket of a WebSocket request was accepted.
fn is_accepted(cluster: &mut Cluster, at: usize, id: SlotId) -> bool {
    assert_eq!(status(cluster, at, id), 101);
    cluster.rig(at).skip_head(id);
    let frames = cluster.rig(at).frames(id);
    match frames.iter().find(|frame| frame.opcode == CLOSE) {
        Some(close) => {
            assert_eq!(close.close_code(), (4001, "bad_token why=bad_ticket".into()));
            false
        }
        None => true,
    }
}

#[test]
fn ticket_of_one_node_is_accepted_once_on_any() {
    let mut cluster = with_keys(3);
    let witness = connect(&mut cluster, 2, "witness");
    let one = ticket(&mut cluster, 0, "alice");
    let id = open_with(&mut cluster, 1, &one);
    assert_eq!(status(&mut cluster, 1, id), 0, "the log has not redeemed it");
    cluster.settle();
    assert!(is_accepted(&mut cluster, 1, id));
    assert_eq!(cluster.rig(2).texts(witness), ["first"], "the message that followed the request");
    for at in 0..3 {
        let id = open_with(&mut cluster, at, &one);
        cluster.settle();
        assert!(!is_accepted(&mut cluster, at, id), "node {at}");
    }
    // The WebSocket has the rights of the ticket's user.
    let id = request(&mut cluster, 0, "DELETE", "/v1/connections?sub=alice", "root");
    cluster.settle();
    assert_eq!(response(&mut cluster, 0, id).1["closed"], 1);
}

#[test]
fn ticket_that_is_used_on_two_nodes_at_once_is_accepted_on_one() {
    let mut cluster = with_keys(3);
    for _ in 0..3 {
        let one = ticket(&mut cluster, 0, "alice");
        let ids = [1, 2].map(|at| (at, open_with(&mut cluster, at, &one)));
        cluster.settle();
        let accepted = ids.map(|(at, id)| is_accepted(&mut cluster, at, id));
        assert_eq!(accepted.iter().filter(|accepted| **accepted).count(), 1, "{accepted:?}");
    }
}

#[test]
fn ticket_expires_on_all_nodes_by_the_time_of_the_log() {
    let mut cluster = with_keys(2);
    let one = ticket(&mut cluster, 0, "alice");
    let other = ticket(&mut cluster, 0, "alice");
    cluster.advance_ms(28_000);
    let id = open_with(&mut cluster, 1, &one);
    cluster.settle();
    assert!(is_accepted(&mut cluster, 1, id));
    cluster.advance_ms(4_000);
    let id = open_with(&mut cluster, 1, &other);
    cluster.settle();
    assert!(!is_accepted(&mut cluster, 1, id));
    assert_eq!(cluster.rig(0).engine.shared.authenticator.tickets.len(), 0);
}

#[test]
fn maximum_of_tickets_is_that_of_all_nodes_together() {
    let mut cluster = with_keys(2);
    let issued: Vec<String> = (0..9).map(|number| ticket(&mut cluster, number % 2, "alice")).collect();
    // Both are submitted before either is read back; the second in the log is rejected.
    let ids = [0, 1].map(|at| (at, request(&mut cluster, at, "POST", "/v1/tickets", "bob")));
    cluster.settle();
    let mut found = ids.map(|(at, id)| response(&mut cluster, at, id).0);
    found.sort_unstable();
    assert_eq!(found, [200, 503]);
    let id = request(&mut cluster, 0, "POST", "/v1/tickets", "carol");
    let (status, body) = response(&mut cluster, 0, id);
    assert_eq!((status, &body["error"]["code"]), (503, &"tickets_out".into()), "at once");
    let id = open_with(&mut cluster, 1, &issued[0]);
    cluster.settle();
    assert!(is_accepted(&mut cluster, 1, id));
    ticket(&mut cluster, 0, "carol");
}

#[test]
fn requests_with_tickets_are_rejected_while_the_log_is_down() {
    let mut cluster = with_keys(2);
    let one = ticket(&mut cluster, 0, "alice");
    let other = ticket(&mut cluster, 0, "alice");
    // The first request is sent to the log, and not read back.
    cluster.nodes[0].is_cut = true;
    let unconfirmed = open_with(&mut cluster, 0, &other);
    cluster.turn(0);
    cluster.stop_log();
    let web_socket = open_with(&mut cluster, 0, &one);
    let stream = stream_with(&mut cluster, 1, &one);
    let issue = request(&mut cluster, 1, "POST", "/v1/tickets", "alice");
    cluster.advance_ms(TIMEOUT_MS + 100);
    let mut code = |at, id| response(&mut cluster, at, id);
    assert_eq!(code(0, unconfirmed).1["error"]["code"], "unconfirmed");
    assert_eq!(code(0, web_socket).1["error"]["code"], "backplane_down");
    assert_eq!(code(1, issue).1["error"]["code"], "backplane_down");
    // An EventSource reconnects only after a stream.
    assert_eq!(status(&mut cluster, 1, stream), 200);
    cluster.nodes[0].is_cut = false;
    cluster.log.is_alive = true;
    cluster.advance_ms(3_000);
    let id = open_with(&mut cluster, 1, &one);
    cluster.settle();
    assert!(is_accepted(&mut cluster, 1, id), "it is unused");
}

#[test]
fn ticket_of_an_event_stream_is_valid_again_on_any_node_after_the_stream() {
    let mut cluster = with_keys(3);
    let one = ticket(&mut cluster, 0, "alice");
    let first = stream_with(&mut cluster, 1, &one);
    assert_eq!(status(&mut cluster, 1, first), 200);
    assert!(is_streaming(&mut cluster, 1, first));
    let second = stream_with(&mut cluster, 2, &one);
    assert!(!is_streaming(&mut cluster, 2, second), "the first stream is open");
    let id = open_with(&mut cluster, 0, &one);
    cluster.settle();
    assert!(!is_accepted(&mut cluster, 0, id), "for a WebSocket it is used");
    cluster.rig(1).reset(first);
    cluster.settle();
    let third = stream_with(&mut cluster, 2, &one);
    assert!(is_streaming(&mut cluster, 2, third));
    // A node that has started since then knows the ticket too, and that the third node has ended.
    cluster.add(4, &Limits::default());
    cluster.rig(3).engine.shared.authenticator = authenticator();
    cluster.settle();
    cluster.nodes.remove(2);
    cluster.advance_ms(8_000);
    let fourth = stream_with(&mut cluster, 2, &one);
    assert!(is_streaming(&mut cluster, 2, fourth));
    cluster.rig(2).reset(fourth);
    cluster.advance_ms(61_000);
    let late = stream_with(&mut cluster, 0, &one);
    assert_eq!(status(&mut cluster, 0, late), 401);
}

#[test]
fn ticket_of_a_client_that_left_before_its_stream_began_is_valid_again() {
    let mut cluster = with_keys(2);
    let one = ticket(&mut cluster, 0, "alice");
    let rig = cluster.rig(0);
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, http::request("GET", &format!("/sse/a?ticket={one}"), "").as_bytes());
    rig.turn();
    cluster.turn(0);
    // The connection is closed before the log returns the request.
    let now = cluster.rig(0).now;
    cluster.rig(0).engine.close(id, Reason::LowMemory, now);
    cluster.settle();
    let again = stream_with(&mut cluster, 1, &one);
    assert!(is_streaming(&mut cluster, 1, again));
}

#[test]
fn request_whose_ticket_is_being_redeemed_is_rejected_by_a_drain() {
    let mut cluster = with_keys(2);
    let one = ticket(&mut cluster, 1, "alice");
    let id = open_with(&mut cluster, 0, &one);
    let now = cluster.rig(0).now;
    cluster.rig(0).engine.drain(now);
    cluster.rig(0).turn();
    let (status, body) = response(&mut cluster, 0, id);
    assert_eq!((status, &body["error"]["code"]), (503, &"drain".into()));
    cluster.settle();
}

#[test]
fn unused_tickets_are_invalid_after_the_log_lost_entries() {
    let mut cluster = with_keys(2);
    let one = ticket(&mut cluster, 0, "alice");
    let id = open_with(&mut cluster, 0, &one);
    cluster.settle();
    assert!(is_accepted(&mut cluster, 0, id));
    // The use of the ticket is lost, and the other node has read everything before it, so no entry is missing there.
    let other = ticket(&mut cluster, 0, "alice");
    cluster.nodes[1].is_cut = true;
    let entries = cluster.log.data.log.len();
    let id = open_with(&mut cluster, 0, &other);
    cluster.turn(0);
    cluster.turn(0);
    cluster.turn(0);
    assert!(is_accepted(&mut cluster, 0, id));
    cluster.stop_log();
    let lost = cluster.log.data.log.len() - entries;
    cluster.log = LogServer::new(cluster.log.version(lost), 2);
    assert_eq!(cluster.log.data.log.len(), entries);
    // The node that accepted it has ended too, and does not report that.
    cluster.nodes.remove(0);
    cluster.nodes[0].is_cut = false;
    cluster.advance_ms(3_000);
    let id = open_with(&mut cluster, 0, &other);
    cluster.settle();
    assert!(!is_accepted(&mut cluster, 0, id));
}

/// The response to a request for a channel, or for the list of channels.
fn get(cluster: &mut Cluster, at: usize, path: &str) -> Value {
    let id = request(cluster, at, "GET", path, "root");
    let (status, body) = response(cluster, at, id);
    assert_eq!(status, 200, "{body}");
    body
}

fn subscribers(cluster: &mut Cluster, at: usize, channel: &str) -> u64 {
    get(cluster, at, &format!("/v1/channels/{channel}"))["subscribers"].as_u64().unwrap()
}

#[test]
fn subscribers_are_those_of_all_nodes() {
    let mut cluster = with_keys(3);
    let ids = [0, 0, 1].map(|at| (at, connect(&mut cluster, at, "alice")));
    cluster.advance_ms(3_000);
    for at in 0..3 {
        let info = get(&mut cluster, at, "/v1/channels/a");
        assert_eq!((&info["subscribers"], &info["nodes"]), (&3.into(), &3.into()), "{info}");
        // The third node has no channel: neither subscribers nor messages.
        let list = get(&mut cluster, at, "/v1/channels");
        assert_eq!(
            list["channels"][0],
            json!({
                "channel": "a", "subscribers": 3, "head": null, "floor": info["floor"], "messages": 0, "bytes": 0,
            })
        );
        assert_eq!((list["channels"].as_array().unwrap().len(), &list["nodes"]), (1, &3.into()));
    }
    // A new subscriber and a publisher receive the same number.
    let head = upgrade_with("/ws/a", &(token(cluster.rig(2), "bob") + "Sec-WebSocket-Protocol: oyez.v1\r\n"));
    let rig = cluster.rig(2);
    let v1 = rig.connect(Behavior::Cooperative);
    rig.send(v1, head.as_bytes());
    rig.turn();
    rig.skip_head(v1);
    let notices = cluster.notices(2, v1);
    let subscribed = notices.iter().find(|notice| notice["type"] == "subscribed").unwrap();
    assert_eq!(subscribed["subscribers"], 4);
    let publisher = cluster.http(1);
    let lines = token(cluster.rig(1), "bob");
    cluster.advance_ms(3_000);
    cluster.publish_http(1, publisher, "a", "one", &lines);
    cluster.settle();
    assert_eq!(response(&mut cluster, 1, publisher).1["subscribers"], 4);
    // One subscriber leaves, and one node ends.
    cluster.rig(0).reset(ids[0].1);
    cluster.advance_ms(3_000);
    assert_eq!([0, 1, 2].map(|at| subscribers(&mut cluster, at, "a")), [3; 3]);
    cluster.nodes.remove(2);
    cluster.advance_ms(8_000);
    assert_eq!([0, 1].map(|at| subscribers(&mut cluster, at, "a")), [2; 2]);
}

#[test]
fn node_that_starts_or_was_away_learns_the_subscribers_of_the_others() {
    let mut cluster = with_keys(2);
    connect(&mut cluster, 0, "alice");
    connect(&mut cluster, 1, "alice");
    cluster.advance_ms(9_000);
    // The entries with the numbers are no longer in the log, only heartbeats of both.
    cluster.log.data.log.drain(..cluster.log.data.log.len() - 4);
    cluster.add(3, &Limits::default());
    cluster.rig(2).engine.shared.authenticator = authenticator();
    cluster.settle();
    cluster.advance_ms(4_000);
    assert_eq!(subscribers(&mut cluster, 2, "a"), 2);
    // A node is silent for so long that the others drop its numbers.
    cluster.nodes[1].is_cut = true;
    cluster.nodes[1].pipes = None;
    for _ in 0..160 {
        cluster.redis_ms += 50;
        for at in [0, 2] {
            let rig = cluster.rig(at);
            rig.now = rig.now.after(50);
            cluster.turn(at);
        }
    }
    assert_eq!(subscribers(&mut cluster, 0, "a"), 1);
    let now = cluster.rig(0).now;
    cluster.rig(1).now = now;
    cluster.nodes[1].is_cut = false;
    cluster.advance_ms(8_000);
    assert_eq!([0, 1, 2].map(|at| subscribers(&mut cluster, at, "a")), [2; 3]);
}

#[test]
fn list_of_channels_has_those_of_other_nodes_in_their_order() {
    let mut cluster = Cluster::of(2);
    let names = ["a", "b", "c", "d", "e"];
    for (number, name) in names.iter().enumerate() {
        cluster.join(number % 2, &format!("/ws/{name}"));
    }
    cluster.join(1, "/ws/a");
    cluster.advance_ms(3_000);
    let page = |cluster: &mut Cluster, query: &str| {
        let id = cluster.http(0);
        let head = http::get(&format!("/v1/channels{query}"));
        cluster.rig(0).send(id, head.as_bytes());
        cluster.turn(0);
        let body = response(cluster, 0, id).1;
        let names = body["channels"].as_array().unwrap().iter().map(|one| one["channel"].as_str().unwrap());
        let subscribers =
            body["channels"].as_array().unwrap().iter().map(|one| one["subscribers"].as_u64().unwrap());
        (names.collect::<String>(), subscribers.sum::<u64>(), body["next"].as_str().map(str::to_owned))
    };
    assert_eq!(page(&mut cluster, ""), ("abcde".into(), 6, None));
    assert_eq!(page(&mut cluster, "?limit=2"), ("ab".into(), 3, Some("b".into())));
    assert_eq!(page(&mut cluster, "?after=b&limit=9"), ("cde".into(), 3, None));
    assert_eq!(page(&mut cluster, "?prefix=d"), ("d".into(), 1, None));
}

/// The counter of blocks in the log; its first value is random.
fn allocated_blocks(cluster: &Cluster) -> u64 {
    cluster.log.data.state["clients"].parse().unwrap()
}

#[test]
fn client_ids_continue_in_another_block_before_the_first_is_used_up() {
    let mut cluster = Cluster::of(2);
    let before = allocated_blocks(&cluster);
    // The blocks that the nodes have allocated are small.
    for (at, block) in [(0, 1), (1, 2)] {
        let clients = &mut cluster.rig(at).engine.clients;
        *clients = ClientIds::with_block_bits(4);
        clients.add_block(block);
    }
    let mut ids = std::collections::BTreeSet::new();
    for number in 0..100 {
        let at = number % 2;
        let id = cluster.v1(at, "/ws/a");
        let hello = cluster.notices(at, id).swap_remove(0);
        assert!(ids.insert(hello["client"].as_str().unwrap().to_owned()), "connection {number}: an id twice");
        cluster.settle();
    }
    // Each node's 50 connections take three further blocks.
    assert_eq!(allocated_blocks(&cluster), before + 6);
}

#[test]
fn block_of_client_ids_is_allocated_after_an_outage_that_began_before() {
    let mut cluster = Cluster::of(1);
    let before = allocated_blocks(&cluster);
    cluster.rig(0).engine.clients = ClientIds::with_block_bits(4);
    cluster.rig(0).engine.clients.add_block(1);
    cluster.stop_log();
    for _ in 0..20 {
        cluster.join(0, "/ws/a");
        cluster.turn(0);
    }
    cluster.log.is_alive = true;
    cluster.advance_ms(3_000);
    assert_eq!(allocated_blocks(&cluster), before + 1);
    cluster.advance_ms(3_000);
    assert_eq!(allocated_blocks(&cluster), before + 1, "one is enough");
}

#[test]
fn data_that_was_replaced_below_the_link_is_found_by_the_allocation_of_client_ids() {
    let mut cluster = Cluster::of(1);
    let subscriber = cluster.v1(0, "/ws/a");
    cluster.rig(0).engine.clients = ClientIds::with_block_bits(4);
    cluster.log.data = LogData::default();
    cluster.rig(0).engine.clients.add_block(1);
    for _ in 0..20 {
        cluster.join(0, "/ws/a");
    }
    cluster.advance_ms(3_000);
    let notices = cluster.notices(0, subscriber);
    assert!(notices.iter().any(|notice| notice["type"] == "gap" && notice["why"] == "lost"), "{notices:?}");
}

#[test]
fn nodes_are_listed_with_their_numbers_and_the_lag_of_this_one() {
    let mut cluster = with_keys(2);
    connect(&mut cluster, 0, "alice");
    cluster.advance_ms(4_000);
    let found = get(&mut cluster, 1, "/v1/nodes");
    assert_eq!(found["node"], "00000002");
    assert_eq!(found["backplane"], json!({"up": true, "lag_items": 0, "lag_ms": 0, "pending": 0}));
    let nodes = found["nodes"].as_array().unwrap();
    assert_eq!((nodes.len(), &nodes[0]["node"], &nodes[0]["seen_ms"]), (2, &"00000002".into(), &0.into()));
    let other = &nodes[1];
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&other["node"], &other["version"]), (&"00000001".into(), &version.into()));
    assert_eq!((&other["connections"], &other["subscriptions"]), (&1.into(), &1.into()), "{other}");
    assert!(other["seen_ms"].as_u64().unwrap() <= 2_000, "{other}");
    // The entries of the second node are appended, and it reads nothing.
    cluster.nodes[1].is_cut = true;
    let lines = token(cluster.rig(1), "bob");
    let publisher = cluster.http(1);
    cluster.publish_http(1, publisher, "a", "one", &lines);
    cluster.advance_ms(1_000);
    let found = get(&mut cluster, 1, "/v1/nodes");
    let Value::Object(backplane) = &found["backplane"] else { panic!("{found}") };
    assert_eq!(backplane["pending"], 1);
    assert!(backplane["lag_ms"].as_u64().unwrap() >= 900, "{found}");
    cluster.nodes[1].is_cut = false;
    cluster.settle();
    let found = get(&mut cluster, 1, "/v1/nodes");
    assert_eq!(found["backplane"], json!({"up": true, "lag_items": 0, "lag_ms": 0, "pending": 0}));
}

#[test]
fn items_that_are_known_to_be_in_the_log_and_not_applied_are_the_lag() {
    let mut cluster = with_keys(2);
    cluster.settle();
    // The second node's reader receives nothing; the replies to its appends arrive.
    cluster.nodes[1].is_reader_cut = true;
    for text in ["one", "two", "three"] {
        let lines = token(cluster.rig(0), "bob");
        let publisher = cluster.http(0);
        cluster.publish_http(0, publisher, "a", text, &lines);
        cluster.turn(0);
    }
    let lines = token(cluster.rig(1), "bob");
    let publisher = cluster.http(1);
    cluster.publish_http(1, publisher, "a", "own", &lines);
    cluster.settle();
    assert_eq!(get(&mut cluster, 1, "/v1/nodes")["backplane"]["lag_items"], 4);
    cluster.nodes[1].is_reader_cut = false;
    cluster.settle();
    assert_eq!(get(&mut cluster, 1, "/v1/nodes")["backplane"]["lag_items"], 0);
}

#[test]
fn node_with_a_log_of_its_own_is_the_only_node() {
    let mut rig = Rig::new(Limits::default());
    rig.engine.run = RunId(7);
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, http::get("/v1/nodes").as_bytes());
    rig.turn();
    let found = rig.responses(id).remove(0).json();
    assert_eq!((&found["node"], &found["backplane"]), (&"00000007".into(), &Value::Null));
    assert_eq!(found["nodes"].as_array().unwrap().len(), 1, "{found}");
}
