//! What a run is doing, for somebody who waits: a bar on a terminal, a line for each stage elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::load::Standing;

/// Shows how a run stands. On standard error: standard output is the report's.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    word: &'static str,
    last: Option<Standing>,
}

impl Progress {
    /// Shows nothing yet.
    pub(super) fn new() -> Progress {
        let bar = output::is_watched().then(|| {
            let style = ProgressStyle::with_template("{prefix:<11} {wide_bar} {msg}");
            ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, word: "", last: None }
    }

    /// Shows how it stands now.
    pub(super) fn show(&mut self, standing: Standing) {
        let has_changed = self.word != standing.word;
        self.word = standing.word;
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(standing.word);
                bar.set_length(standing.steps.max(1));
                bar.set_position(standing.step);
                bar.set_message(self.message(&standing));
            }
            None if has_changed => {
                let Standing { word, open, deliveries, .. } = standing;
                output::note(format_args!("{word}: {open} open, {deliveries} delivered"));
            }
            None => {}
        }
        self.last = Some(standing);
    }

    /// Counts and rates, since the last time.
    fn message(&self, standing: &Standing) -> String {
        let Standing { open, deliveries, .. } = standing;
        let Some(last) = &self.last else { return format!("{open} open") };
        let span = standing.since_birth.saturating_sub(last.since_birth).max(Duration::from_millis(1));
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / span.as_secs_f64();
        if *deliveries > 0 {
            let rate = rate(*deliveries, last.deliveries);
            format!("{open} open, {deliveries} delivered, {rate:.0}/s")
        } else {
            format!("{open} open, {:.0}/s", rate(*open as u64, last.open as u64))
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
