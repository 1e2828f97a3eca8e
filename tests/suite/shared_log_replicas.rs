//! Acknowledgements that wait for replicas of the log's server. Method: nodes and a log in memory, whose replicas
//! respond when the test lets them.

use oyez::config::Limits;
use oyez::ids::SlotId;
use serde_json::Value;

use crate::support::cluster::{Cluster, TIMEOUT_MS};
use crate::support::frames;
use crate::support::log_server::LogServer;

fn texts(notices: &[Value]) -> Vec<&str> {
    notices.iter().filter_map(|notice| notice["text"].as_str()).collect()
}

fn of_type<'a>(notices: &'a [Value], kind: &str) -> Option<&'a Value> {
    notices.iter().find(|notice| notice["type"] == kind)
}

/// A node that waits for a replica that does not respond, and the connections that have published: over `oyez.v1`,
/// HTTP, and a raw WebSocket that closes.
struct Unreplicated {
    cluster: Cluster,
    v1: SlotId,
    http: SlotId,
    raw: SlotId,
}

impl Unreplicated {
    fn publish() -> Unreplicated {
        let mut cluster = Cluster::waiting_for(1, 2, &Limits::default());
        let (v1, http, raw) = (cluster.v1(0, "/ws/a"), cluster.http(0), cluster.join(0, "/ws/a?echo=0"));
        cluster.log.replicas = Some(1);
        cluster.settle();
        cluster.notices(0, v1);
        cluster.log.replicas = None;
        cluster.rig(0).send_text(v1, r#"{"type":"publish","ch":"a","text":"x","ref":7}"#);
        cluster.publish_http(0, http, "a", "y", "");
        cluster.rig(0).send_text(raw, "z");
        cluster.rig(0).send(raw, &frames::close(1000, ""));
        cluster.settle();
        let notices = cluster.notices(0, v1);
        assert_eq!(texts(&notices), ["x", "y", "z"], "they are delivered");
        let mut published = Unreplicated { cluster, v1, http, raw };
        assert_eq!(published.answers(), (None, None, None));
        published
    }

    /// The responses to the publishers since the last call: type or code, status, and close frame.
    fn answers(&mut self) -> (Option<String>, Option<u16>, Option<(u16, String)>) {
        let notices = self.cluster.notices(0, self.v1);
        let v1 = of_type(&notices, "ack").map(|notice| &notice["type"]);
        let v1 = v1.or(of_type(&notices, "error").map(|notice| &notice["code"]));
        let v1 = v1.map(|word| word.as_str().unwrap().to_owned());
        let http = self.cluster.rig(0).responses(self.http).first().map(|response| response.status);
        let frames = self.cluster.rig(0).frames(self.raw);
        let close = frames.iter().find(|frame| frame.opcode == 8).map(|frame| frame.close_code());
        (v1, http, close)
    }
}

fn acknowledged() -> (Option<String>, Option<u16>, Option<(u16, String)>) {
    (Some("ack".into()), Some(200), Some((1000, String::new())))
}

fn unconfirmed() -> (Option<String>, Option<u16>, Option<(u16, String)>) {
    (Some("unconfirmed".into()), Some(503), Some((4104, "backplane_down retry_ms=1000".into())))
}

#[test]
fn publish_is_acknowledged_when_enough_replicas_have_it() {
    let mut published = Unreplicated::publish();
    published.cluster.log.replicas = Some(1);
    published.cluster.settle();
    assert_eq!(published.answers(), acknowledged());
    assert_eq!(published.cluster.rig(0).engine.shared.metrics.backplane_unconfirmed, 0);
}

#[test]
fn publish_that_too_few_replicas_have_is_unconfirmed() {
    let mut published = Unreplicated::publish();
    published.cluster.log.replicas = Some(0);
    published.cluster.settle();
    assert_eq!(published.answers(), unconfirmed());
    let Unreplicated { mut cluster, v1, .. } = published;
    assert_eq!(cluster.rig(0).engine.shared.metrics.backplane_unconfirmed, 3);
    let now = cluster.rig(0).now;
    assert!(cluster.nodes[0].link().stats(now).waits_expired > 0);
    // The failed wait has no effect on later publishes.
    cluster.log.replicas = Some(2);
    cluster.rig(0).send_text(v1, r#"{"type":"publish","ch":"a","text":"next","ref":8}"#);
    cluster.settle();
    assert_eq!(of_type(&cluster.notices(0, v1), "ack").expect("an acknowledgement")["ref"], 8);
}

#[test]
fn acknowledgement_that_waits_for_replicas_survives_a_lost_link() {
    let mut published = Unreplicated::publish();
    published.cluster.stop_log();
    published.cluster.advance_ms(500);
    assert_eq!(published.answers(), (None, None, None));
    (published.cluster.log.is_alive, published.cluster.log.replicas) = (true, Some(1));
    published.cluster.advance_ms(4_000);
    assert_eq!(published.answers(), acknowledged());
}

#[test]
fn message_that_is_lost_while_replicas_are_waited_for_is_unconfirmed() {
    let mut published = Unreplicated::publish();
    published.cluster.stop_log();
    published.cluster.log = LogServer::new(published.cluster.log.version(4), 2);
    published.cluster.log.replicas = Some(1);
    published.cluster.advance_ms(4_000);
    let (v1, http, close) = published.answers();
    assert_eq!((v1.as_deref(), http), (Some("unconfirmed"), Some(503)));
    // The loss closes the raw connection first.
    assert_eq!(close.map(|(code, _)| code), Some(4104));
}

#[test]
fn acknowledgement_that_waits_for_replicas_without_a_link_is_unconfirmed_after_its_timeout() {
    let mut published = Unreplicated::publish();
    published.cluster.stop_log();
    published.cluster.advance_ms(TIMEOUT_MS - 1_000);
    assert_eq!(published.answers(), (None, None, None));
    published.cluster.advance_ms(2_000);
    assert_eq!(published.answers(), unconfirmed());
}

#[test]
fn wait_without_a_reply_ends_the_link() {
    let mut published = Unreplicated::publish();
    // This is longer than both timeouts.
    published.cluster.advance_ms(8_000);
    let now = published.cluster.rig(0).now;
    assert!(published.cluster.nodes[0].link().stats(now).links_lost > 0);
}
