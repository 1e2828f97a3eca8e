//! The console: one web page on which a channel can be watched, and the client module.
//!
//! The files are part of the binary, so that a server is one file to copy and its page always fits its
//! wire; and they are served as they are written. There is no build step, nothing is fetched from
//! elsewhere, and no script or style stands inside the page, so that the strictest content security
//! policy holds: a payload that was made to be run has nothing to run in. Paths are flat, since the page
//! names its files relative to itself and so works below any prefix that a proxy puts in front of it.
//!
//! The page is a client like any other. It speaks `oyez.v1` through the same `/oyez.js` that it offers to
//! everybody, and asks `/v1/channels` and `/metrics` with the token that its reader typed in. What it
//! shows is what any client with that token may learn.
//!
//! This floor only holds bytes: the server is handed the tables through its config, and never looks here.

use crate::config::Asset;

/// What the content type of every script says. Browsers run a module only with a JavaScript type.
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The client module. It stays with `--no-console`: other people's pages import it.
pub static CLIENT_MODULE: Asset =
    Asset { path: "/oyez.js", content_type: SCRIPT, bytes: include_bytes!("oyez.js") };

/// The page and all that it names, except for [`CLIENT_MODULE`].
pub static ASSETS: &[Asset] = &[
    Asset { path: "/", content_type: "text/html; charset=utf-8", bytes: include_bytes!("index.html") },
    Asset {
        path: "/console.css",
        content_type: "text/css; charset=utf-8",
        bytes: include_bytes!("console.css"),
    },
    script("/console.js", include_bytes!("console.js")),
    script("/channel.js", include_bytes!("channel.js")),
    script("/chart.js", include_bytes!("chart.js")),
    script("/chat.js", include_bytes!("chat.js")),
    script("/dom.js", include_bytes!("dom.js")),
    script("/editor.js", include_bytes!("editor.js")),
    script("/operation.js", include_bytes!("operation.js")),
    script("/scrape.js", include_bytes!("scrape.js")),
    script("/shared-hub.js", include_bytes!("shared-hub.js")),
    script("/shared-text-view.js", include_bytes!("shared-text-view.js")),
    script("/shared-text.js", include_bytes!("shared-text.js")),
    script("/ticker.js", include_bytes!("ticker.js")),
];

const fn script(path: &'static str, bytes: &'static [u8]) -> Asset {
    Asset { path, content_type: SCRIPT, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file names in its own folder: imports, and what the page loads.
    fn named(text: &str) -> impl Iterator<Item = &str> {
        [" from './", "<script type=\"module\" src=\"", "<link rel=\"stylesheet\" href=\""]
            .into_iter()
            .flat_map(|before| text.split(before).skip(1))
            .filter_map(|rest| rest.split(['\'', '"']).next())
    }

    #[test]
    fn all_that_the_page_names_is_served() {
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
