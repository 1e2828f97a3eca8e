//! The progress of a bench run: a bar on a terminal, otherwise a line per stage.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::load::RunProgress;

/// Prints progress on standard error, since standard output is for the report.
pub(super) struct ProgressDisplay {
    bar: Option<ProgressBar>,
    stage: &'static str,
    last: Option<RunProgress>,
}

impl ProgressDisplay {
    /// A display that has printed nothing.
    pub(super) fn new() -> ProgressDisplay {
        let bar = output::is_watched().then(|| {
            let style = ProgressStyle::with_template("{prefix:<11} {wide_bar} {msg}");
            ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        ProgressDisplay { bar, stage: "", last: None }
    }

    /// Shows the current progress.
    pub(super) fn show(&mut self, progress: RunProgress) {
        let has_changed = self.stage != progress.stage;
        self.stage = progress.stage;
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(progress.stage);
                bar.set_length(progress.steps.max(1));
                bar.set_position(progress.step);
                bar.set_message(self.message(&progress));
            }
            None if has_changed => {
                let RunProgress { stage, open, deliveries, .. } = progress;
                output::note(format_args!("{stage}: {open} open, {deliveries} delivered"));
            }
            None => {}
        }
        self.last = Some(progress);
    }

    /// Counts, and rates since the last call.
    fn message(&self, progress: &RunProgress) -> String {
        let RunProgress { open, deliveries, .. } = progress;
        let Some(last) = &self.last else { return format!("{open} open") };
        let span = progress.since_start.saturating_sub(last.since_start).max(Duration::from_millis(1));
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / span.as_secs_f64();
        if *deliveries > 0 {
            let rate = rate(*deliveries, last.deliveries);
            format!("{open} open, {deliveries} delivered, {rate:.0}/s")
        } else {
            format!("{open} open, {:.0}/s", rate(*open as u64, last.open as u64))
        }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
