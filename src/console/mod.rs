//! The files of the web console, a page for watching and publishing on channels, and of the JavaScript client module.
//!
//! The files are embedded in the binary, so that a server is one file to copy and its page always matches its protocol.
//! They are served unchanged, compressed by gzip where the client accepts it. There is no bundler, nothing is loaded
//! from other hosts, and the page has no inline script or style, so that the strictest content security policy applies:
//! an injected payload cannot run. Paths are flat, since the page names its files relative to itself and so works below
//! any prefix that a proxy adds.
//!
//! The page is an ordinary client. It speaks `oyez.v1` through the public `/oyez.js`, and requests `/v1/channels`,
//! `/v1/nodes` and `/metrics` with the token that the user enters. It shows only data that any other client with that
//! token can request.
//!
//! This module only holds bytes: the server receives the tables through its configuration, and does not import it.

use crate::config::Asset;

/// An embedded file, with its compressed form and its hash from the build script.
macro_rules! asset {
    ($path:expr, $content_type:literal, $file:literal) => {
        Asset {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!($file),
            gzip: include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".gz")),
            tag: include_str!(concat!(env!("OUT_DIR"), "/", $file, ".tag")),
        }
    };
}

/// An embedded script. Browsers run a module only with a JavaScript type.
macro_rules! script {
    ($file:literal) => {
        asset!(concat!("/", $file), "text/javascript; charset=utf-8", $file)
    };
}

/// The client module. It is served with `--no-console` too, since applications import it.
pub static CLIENT_MODULE: Asset = script!("oyez.js");

/// The page and the files that it refers to, except for [`CLIENT_MODULE`]; none in a build without the cargo feature
/// `console`.
pub static ASSETS: &[Asset] = if cfg!(feature = "console") { PAGE } else { &[] };

const PAGE: &[Asset] = &[
    asset!("/", "text/html; charset=utf-8", "index.html"),
    asset!("/console.css", "text/css; charset=utf-8", "console.css"),
    script!("console.js"),
    script!("channel.js"),
    script!("chart.js"),
    script!("chat.js"),
    script!("dom.js"),
    script!("editor.js"),
    script!("nodes.js"),
    script!("operation.js"),
    script!("scrape.js"),
    script!("shared-hub.js"),
    script!("shared-text-view.js"),
    script!("shared-text.js"),
    script!("ticker.js"),
];

#[cfg(all(test, feature = "console"))]
mod tests {
    use super::*;

    /// The files that a file refers to: imports, scripts and style sheets.
    fn named(text: &str) -> impl Iterator<Item = &str> {
        [" from './", "<script type=\"module\" src=\"", "<link rel=\"stylesheet\" href=\""]
            .into_iter()
            .flat_map(|before| text.split(before).skip(1))
            .filter_map(|rest| rest.split(['\'', '"']).next())
    }

    #[test]
    fn file_that_the_page_refers_to_is_served() {
        let served: Vec<_> = ASSETS.iter().chain([&CLIENT_MODULE]).collect();
        let mut names = 0;
        for asset in &served {
            let text = std::str::from_utf8(asset.bytes).expect("text");
            for name in named(text) {
                names += 1;
                assert!(
                    served.iter().any(|other| other.path.strip_prefix('/') == Some(name)),
                    "{} names {name}, which is not served",
                    asset.path
                );
            }
        }
        assert!(names > ASSETS.len(), "found only {names} names");
    }
}
