//! The embedded files: the console and `/oyez.js`, their compression and their entity tags. Raw requests to a real
//! server; the bodies are compared with the files of the sources.

use std::fs;
use std::io::{Read as _, Write as _};

use zlib_rs::{InflateConfig, ReturnCode, decompress_slice};

use crate::support::client::Client;
use crate::support::http::request;
use crate::support::process::Server;

/// Paths and their files. A build without the console has the first.
const FILES: &[(&str, &str)] = if cfg!(feature = "console") { &ALL } else { ALL.split_at(1).0 };

const ALL: [(&str, &str); 4] = [
    ("/oyez.js", "oyez.js"),
    ("/", "index.html"),
    ("/console.css", "console.css"),
    ("/shared-text-view.js", "shared-text-view.js"),
];

fn source(file: &str) -> Vec<u8> {
    fs::read(format!("src/console/{file}")).unwrap()
}

/// Requests a path on a new connection. Returns the body of the last response.
fn body(server: &Server, path: &str, lines: &str) -> Vec<u8> {
    let mut stream = server.connect();
    stream.write_all(request("GET", path, &format!("{lines}Connection: close\r\n")).as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    let head_end = response.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    response.split_off(head_end)
}

fn decompressed(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 1 << 17];
    let config = InflateConfig { window_bits: 15 + 16 };
    let (data, status) = decompress_slice(&mut out, bytes, config);
    assert_eq!(status, ReturnCode::Ok);
    data.to_vec()
}

#[test]
fn file_is_compressed_for_clients_that_accept_gzip() {
    let server = Server::start(&[]);
    for &(path, file) in FILES {
        let plain = source(file);
        assert_eq!(body(&server, path, ""), plain, "{path}");
        let compressed = body(&server, path, "Accept-Encoding: br, gzip, deflate\r\n");
        assert_eq!(decompressed(&compressed), plain, "{path}");
        assert!(compressed.len() * 2 < plain.len(), "{path}: {} of {}", compressed.len(), plain.len());
    }
}

#[test]
fn gzip_is_sent_only_to_clients_that_accept_it() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let mut coding = |lines: &str| {
        let response = client.ask_head(request("HEAD", "/oyez.js", lines));
        assert_eq!((response.status, response.field("Vary")), (200, Some("Accept-Encoding")), "{lines}");
        response.field("Content-Encoding").map(str::to_owned)
    };
    for accepted in ["gzip", "GZIP", "deflate, gzip;q=0.5", "gzip ; q=1", "br;q=0, gzip", "identity, gzip"] {
        assert_eq!(
            coding(&format!("Accept-Encoding: {accepted}\r\n")).as_deref(),
            Some("gzip"),
            "{accepted}"
        );
    }
    assert_eq!(coding("Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n").as_deref(), Some("gzip"));
    for other in ["", "identity", "gzip;q=0", "gzip; q=0.000", "gzip;Q=0", "x-gzip2", "*;q=0", "br, deflate"]
    {
        assert_eq!(coding(&format!("Accept-Encoding: {other}\r\n")), None, "{other}");
    }
    assert_eq!(coding(""), None);
}

#[test]
fn unchanged_file_is_answered_with_304() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    for &(path, file) in FILES {
        let mut tags = Vec::new();
        for coding in ["", "Accept-Encoding: gzip\r\n"] {
            let whole = client.ask_head(request("HEAD", path, coding));
            let tag = whole.field("ETag").expect("a tag").to_owned();
            assert!(tag.starts_with('"') && tag.ends_with('"'), "a strong tag: {tag}");
            for current in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
                for method in ["GET", "HEAD"] {
                    let lines = format!("{coding}If-None-Match: {current}\r\n");
                    let response = client.ask(request(method, path, &lines));
                    assert_eq!((response.status, response.body.as_str()), (304, ""), "{path} {lines}");
                    // RFC 9110 15.4.5: the fields that a 200 would have, for caches.
                    for field in ["ETag", "Cache-Control", "Vary"] {
                        assert_eq!(response.field(field), whole.field(field), "{field}");
                    }
                    assert_eq!(
                        (response.field("Content-Length"), response.field("Content-Encoding")),
                        (None, None)
                    );
                }
            }
            tags.push(tag);
        }
        // RFC 9110 8.8.3.3: a tag names one representation.
        assert_ne!(tags[0], tags[1]);
        for stale in [tags[1].as_str(), "\"\"", &tags[0][1..tags[0].len() - 1]] {
            let response = client.ask(request("GET", path, &format!("If-None-Match: {stale}\r\n")));
            assert_eq!((response.status, response.body.as_bytes()), (200, &*source(file)), "{stale}");
        }
    }
}

#[test]
fn tags_of_files_differ() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let mut tags: Vec<String> = FILES
        .iter()
        .map(|(path, _)| client.ask_head(request("HEAD", path, "")).field("ETag").unwrap().to_owned())
        .collect();
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), FILES.len());
}
