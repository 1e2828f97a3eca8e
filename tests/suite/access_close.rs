//! Closing all connections of a user through the HTTP API. A real server with keys; the user is connected over every
//! transport, other users stay connected.

use crate::support::auth_server::{AuthServer, admin, bearer, token};
use crate::support::client::Client;
use crate::support::http::{post, request};
use crate::support::process::Server;

fn closes(server: &Server, sub: &str, lines: &str) -> (u16, String) {
    let path = format!("/v1/connections?sub={sub}");
    let answer = Client::new(server.connect()).ask(request("DELETE", &path, lines));
    (answer.status, answer.body)
}

#[test]
fn user_closed_by_admin_loses_all_connections_and_others_keep_theirs() {
    let guarded = AuthServer::start(&["--anonymous=subscribe=a publish=a"]);
    let server = &guarded.server;
    let alice = bearer(&token("alice", &["a"], &["a"]));
    let mut raw = guarded.upgraded("/ws/a", &alice);
    let mut v1 = guarded.upgraded("/ws", &format!("{alice}Sec-WebSocket-Protocol: oyez.v1\r\n"));
    v1.text();
    let mut events = Client::new(server.connect());
    events.send(request("GET", "/sse/a", &alice).as_bytes());
    events.head();
    assert_eq!(events.event(), "retry: 3000\n\n");
    events.event();
    let mut alicia = guarded.upgraded("/ws/a", &bearer(&token("alicia", &["a"], &["a"])));
    let mut nobody = guarded.upgraded("/ws/a", "");
    nobody.send_text("x");
    for client in [&mut raw, &mut alicia, &mut nobody] {
        assert_eq!(client.text(), "x", "all are there");
    }
    events.event();

    let ticket = |lines: &str| {
        let answer = Client::new(server.connect()).ask(post("/v1/tickets", lines, "")).json();
        format!("/ws/a?ticket={}", answer["ticket"].as_str().unwrap())
    };
    let (alices, alicias) = (ticket(&alice), ticket(&bearer(&token("alicia", &["a"], &["a"]))));

    assert_eq!(closes(server, "alice", "").0, 401);
    assert_eq!(closes(server, "alice", &alice).0, 403, "not even one's own");
    assert_eq!(closes(server, "alice", &bearer(&admin())), (200, "{\"closed\":3}\n".into()));
    assert_eq!(raw.closed_and_ended(), (4003, "forbidden".into()));
    assert_eq!(v1.closed_and_ended(), (4003, "forbidden".into()));
    assert_eq!(events.event_or_end(), None);
    assert!(events.stream_is_whole());
    assert_eq!(guarded.closed(&alices, ""), (4001, "bad_token why=bad_ticket".into()));
    drop(guarded.upgraded(&alicias, ""));
    nobody.send_text("y");
    assert_eq!((alicia.text(), nobody.text()), ("y".into(), "y".into()));
    assert_eq!(closes(server, "alice", &bearer(&admin())), (200, "{\"closed\":0}\n".into()));
    assert_eq!(closes(server, "%D0%B8", &bearer(&admin())), (200, "{\"closed\":0}\n".into()));
    for written in ["alice+smith", "alice%20smith"] {
        let mut raw = guarded.upgraded("/ws/a", &bearer(&token("alice smith", &["a"], &["a"])));
        assert_eq!(closes(server, written, &bearer(&admin())), (200, "{\"closed\":1}\n".into()), "{written}");
        assert_eq!(raw.closed_and_ended(), (4003, "forbidden".into()));
    }
    for bad in ["", "%0d%0a", "%ff", "%1b", "%e2%80%ae"] {
        assert_eq!(closes(server, bad, &bearer(&admin())).0, 400, "{bad}");
    }
    let answer = Client::new(server.connect()).ask(request("DELETE", "/v1/connections", &bearer(&admin())));
    assert_eq!(answer.status, 400, "an empty user is invalid");
    let foreign = format!("{}Origin: https://evil.example\r\n", bearer(&admin()));
    assert_eq!(closes(server, "alicia", &foreign).0, 403);
}
