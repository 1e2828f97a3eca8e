//! Line charts as SVG elements for an HTML page.
//!
//! plotters writes colors as numbers, but a page that supports light and dark mode needs names. So everything is drawn
//! in reserved colors, which are then replaced by CSS variables.

use std::io;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;

/// The chart's size in its own units; the page scales it.
const WIDTH: u32 = 720;
const HEIGHT: u32 = 340;

/// The number of line styles. Colors alone distinguish them, and dashes do so as well.
const COLOURS: usize = 6;

const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);

/// A chart of lines over one pair of axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Description for screen readers.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Index of its color and dash pattern.
    pub style: usize,
    /// The points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Name of the quantity.
    pub name: &'static str,
    /// Scale of the values.
    pub scale: Scale,
    /// First and last value.
    pub range: (f64, f64),
    /// Formats a value.
    pub label: fn(f64) -> String,
}

/// The mapping of values to positions on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm, with labels at powers of ten.
    Logarithmic,
    /// By how close a quantile is to one, in powers of ten: 0.9 is 1, 0.99 is 2.
    Nines,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Logarithmic => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - value).max(1e-9).log10(),
        }
    }

    fn value(self, place: f64) -> f64 {
        match self {
            Scale::Linear => place,
            Scale::Logarithmic => 10f64.powf(place),
            Scale::Nines => 1.0 - 10f64.powf(-place),
        }
    }
}

impl Axis {
    /// An axis that covers the values. All but logarithmic axes begin at zero.
    pub fn over(
        name: &'static str,
        scale: Scale,
        label: fn(f64) -> String,
        values: impl Iterator<Item = f64>,
    ) -> Axis {
        let (mut low, mut high) = (f64::MAX, f64::MIN);
        for value in values.filter(|value| value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        let range = match scale {
            // Without values, a default range.
            Scale::Logarithmic if low > high => (1.0, 10.0),
            _ if low > high => (0.0, 0.99),
            // Whole powers of ten.
            Scale::Logarithmic => {
                let low = low.max(1e-3).log10().floor();
                let high = high.max(1e-3).log10().ceil().max(low + 1.0);
                (10f64.powf(low), 10f64.powf(high))
            }
            Scale::Linear => (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Nines => (0.0, high.max(0.99)),
        };
        Axis { name, scale, range, label }
    }

    fn coordinate(&self) -> Coordinate {
        let (low, high) = (self.scale.place(self.range.0), self.scale.place(self.range.1));
        Coordinate { scale: self.scale, low, high, label: self.label }
    }
}

/// plotters' form of an axis: over positions, labelled with values.
struct Coordinate {
    scale: Scale,
    low: f64,
    high: f64,
    label: fn(f64) -> String,
}

impl Ranged for Coordinate {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, limit: (i32, i32)) -> i32 {
        let share = (place - self.low) / (self.high - self.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let range = plotters::coord::types::RangedCoordf64::from(self.low..self.high);
                range.key_points(hint.max_num_points())
            }
            Scale::Logarithmic | Scale::Nines => {
                (self.low.ceil() as i32..=self.high.floor() as i32).map(f64::from).collect()
            }
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Coordinate {
    fn format_ext(&self, place: &f64) -> String {
        (self.label)(self.scale.value(*place))
    }
}

impl Chart {
    /// The chart as an `<svg>` element.
    ///
    /// # Errors
    /// plotters cannot draw it.
    pub fn svg(&self) -> Result<String, String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| format!("a chart cannot be drawn: {error}"))?;
        Ok(self.fit_into_page(&text))
    }

    fn draw(&self, text: &mut String) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let root = SVGBackend::with_string(text, (WIDTH, HEIGHT)).into_drawing_area();
        let (x, y) = (self.x.coordinate(), self.y.coordinate());
        let style = ("sans-serif", 16).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(48)
            .x_label_area_size(48)
            .y_label_area_size(88)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_labels(8)
            .y_labels(6)
            .x_desc(self.x.name)
            .y_desc(self.y.name)
            .label_style(style.clone())
            .axis_desc_style(style)
            .axis_style(GRID)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for series in &self.series {
            let (x, y) = (self.x.scale, self.y.scale);
            let points: Vec<(f64, f64)> = series
                .points
                .iter()
                .map(|&(across, up)| (x.place(across), y.place(up.clamp(self.y.range.0, self.y.range.1))))
                .collect();
            let style = RGBColor(3, 3, series.style as u8).stroke_width(2);
            match dashes(series.style) {
                None => chart.draw_series(LineSeries::new(points, style))?,
                Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points, dash, gap, style))?,
            };
        }
        root.present()?;
        Ok(())
    }

    /// Replaces reserved colors by CSS variables and the fixed size by the page's, and adds the title for screen
    /// readers.
    fn fit_into_page(&self, text: &str) -> String {
        let mut text = text
            .replacen(
                &format!("<svg width=\"{WIDTH}\" height=\"{HEIGHT}\""),
                &format!("<svg role=\"img\" aria-label=\"{}\"", escape(&self.title)),
                1,
            )
            .replace("\"#010101\"", "\"var(--ink)\"")
            .replace("\"#020202\"", "\"var(--grid)\"");
        for style in 0..=usize::from(u8::MAX) {
            let number = format!("\"#0303{style:02X}\"");
            if text.contains(&number) {
                text = text.replace(&number, &format!("\"var(--line-{})\"", style % COLOURS));
            }
        }
        text
    }
}

/// The lengths of dashes and gaps; the first line has none.
fn dashes(style: usize) -> Option<(u32, u32)> {
    match style % COLOURS {
        0 => None,
        1 => Some((9, 4)),
        2 => Some((3, 3)),
        3 => Some((14, 4)),
        4 => Some((6, 6)),
        _ => Some((2, 6)),
    }
}

/// A short line in this style, for a legend.
pub fn sample(style: usize) -> String {
    let dashes = dashes(style).map_or("none".to_owned(), |(dash, gap)| format!("{dash} {gap}"));
    format!(
        "<svg class=\"sample\" viewBox=\"0 0 36 8\" aria-hidden=\"true\"><line x1=\"0\" y1=\"4\" x2=\"36\" y2=\"4\" \
         stroke=\"var(--line-{})\" stroke-width=\"2.5\" stroke-dasharray=\"{dashes}\"/></svg>",
        style % COLOURS
    )
}

/// Escapes text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_has_variables_in_place_of_colors() {
        let points = vec![(0.0, 10.0), (1.0, 2_000.0)];
        let series = vec![
            Series { name: "a".to_owned(), style: 0, points: points.clone() },
            Series { name: "b".to_owned(), style: 7, points: points.clone() },
        ];
        let label: fn(f64) -> String = |value| format!("{value:.0}");
        let x = Axis::over("time", Scale::Linear, label, points.iter().map(|point| point.0));
        let y = Axis::over("latency", Scale::Logarithmic, label, points.iter().map(|point| point.1));
        assert_eq!(y.range, (10.0, 10_000.0));
        let svg = Chart { title: "a < \"b\"".to_owned(), x, y, series }.svg().unwrap();
        assert!(svg.starts_with("<svg role=\"img\" aria-label=\"a &lt; &quot;b&quot;\" viewBox="), "{svg}");
        assert!(svg.contains("var(--line-0)") && svg.contains("var(--line-1)") && svg.contains("var(--ink)"));
        assert!(!svg.contains("\"#"), "{svg}");
    }

    #[test]
    fn axis_without_values_is_drawn() {
        let label: fn(f64) -> String = |value| format!("{value:.0}");
        for scale in [Scale::Linear, Scale::Logarithmic, Scale::Nines] {
            let axis = Axis::over("x", scale, label, std::iter::empty());
            let chart = Chart { title: String::new(), x: axis.clone(), y: axis, series: Vec::new() };
            chart.svg().unwrap();
        }
    }
}
