//! A figure as data: what is to be seen, without any drawing.

/// One file: panels in a grid over a common axis of optimizer steps.
#[derive(Debug)]
pub(super) struct Figure {
    /// Name of the file, without extension.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Panels in a row; the last row may be short.
    pub(super) columns: usize,
    pub(super) panels: Vec<Panel>,
    /// Right end of the axis of steps.
    pub(super) last_step: f64,
    /// Last step of the cold start, where it is known: shaded.
    pub(super) cold_start_step: Option<f64>,
}

/// One pair of axes.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) scale: Scale,
    pub(super) series: Vec<Series>,
}

/// How values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// A share, from 0% to 100%.
    Share,
    /// A share that is usually small, from 0% to its largest.
    SmallShare,
    /// From 0 to the largest.
    FromZero,
    /// Between the extremes.
    Free,
    /// Logarithmic; what is not positive is left out.
    Log,
}

/// What is drawn between the axes, in one colour.
#[derive(Debug)]
pub(super) struct Series {
    /// Entry of the legend; empty: none.
    pub(super) label: &'static str,
    pub(super) hue: Hue,
    pub(super) marks: Marks,
}

/// Colours that people with any colour vision tell apart (Okabe and Ito 2008).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hue {
    Blue,
    Vermilion,
    Green,
    Grey,
}

/// How points are marked.
#[derive(Debug)]
pub(super) enum Marks {
    /// A line through (step, value).
    Line(Vec<(f64, f64)>),
    /// Faint dots at (step, value): single measurements behind a line of their mean.
    Dots(Vec<(f64, f64)>),
    /// Points with their interval: (step, low, value, high).
    Intervals(Vec<(f64, f64, f64, f64)>),
}

impl Series {
    /// The values on the scale, low and high ends included.
    pub(super) fn values(&self) -> Vec<f64> {
        match &self.marks {
            Marks::Line(points) | Marks::Dots(points) => points.iter().map(|(_, y)| *y).collect(),
            Marks::Intervals(points) => {
                points.iter().flat_map(|(_, low, y, high)| [*low, *y, *high]).collect()
            }
        }
    }
}

impl Panel {
    /// Ends of the vertical axis; of the logarithm to base 10 on the logarithmic scale. `None` when
    /// there is nothing to show.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        let values = self.series.iter().flat_map(Series::values);
        let values = values.filter_map(|value| self.scale.place(value));
        let ends = values.fold(None, |ends: Option<(f64, f64)>, value| {
            let (low, high) = ends.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        });
        let (low, high) = ends?;
        Some(match self.scale {
            Scale::Share => (0.0, 1.0),
            Scale::SmallShare => (0.0, (high * 1.1).clamp(0.01, 1.0)),
            Scale::FromZero => (0.0, if high > 0.0 { high * 1.1 } else { 1.0 }),
            Scale::Free => {
                let margin = ((high - low) * 0.08).max(high.abs() * 1e-3).max(1e-9);
                (low - margin, high + margin)
            }
            Scale::Log => (low.floor(), high.ceil().max(low.floor() + 1.0)),
        })
    }
}

impl Scale {
    /// Where a value lies on the axis; `None`: nowhere.
    pub(super) fn place(self, value: f64) -> Option<f64> {
        let placed = if self == Self::Log { value.log10() } else { value };
        placed.is_finite().then_some(placed)
    }

    /// How many ticks an axis of this length takes, at most.
    pub(super) fn ticks(self, length: f64) -> usize {
        // On the logarithmic scale only whole powers of ten.
        if self == Self::Log { length as usize + 1 } else { 6 }
    }

    /// Text of a tick at `placed` on an axis of this length.
    pub(super) fn tick(self, placed: f64, length: f64) -> String {
        match self {
            Self::Share => format!("{:.0}%", 100.0 * placed),
            Self::SmallShare => {
                let digits = usize::from(length < 0.05) + usize::from(length < 0.005);
                format!("{:.digits$}%", 100.0 * placed)
            }
            Self::Log => format!("1e{placed:.0}"),
            Self::FromZero | Self::Free if length >= 10_000.0 => format!("{:.0}k", placed / 1000.0),
            Self::FromZero | Self::Free => {
                // Ticks are about a fifth of the axis apart.
                let digits = (1.0 - (length / 5.0).log10().floor()).clamp(0.0, 6.0) as usize;
                let text = format!("{placed:.digits$}");
                let text = if digits > 0 {
                    text.trim_end_matches('0').trim_end_matches('.')
                } else {
                    &text
                };
                if text == "-0" { "0".into() } else { text.to_owned() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(scale: Scale, values: &[f64]) -> Panel {
        let points = values.iter().map(|value| (0.0, *value)).collect();
        let series = Series { label: "", hue: Hue::Blue, marks: Marks::Line(points) };
        Panel { title: "", scale, series: vec![series] }
    }

    #[test]
    fn every_range_has_an_extent() {
        let cases: [&[f64]; 4] = [&[0.0], &[0.0, 0.0], &[5.0, 5.0], &[-3.0, 1e-9]];
        for scale in [Scale::Share, Scale::SmallShare, Scale::FromZero, Scale::Free] {
            for values in cases {
                let (low, high) = panel(scale, values).range().expect("values");
                assert!(low < high, "{scale:?} {values:?}");
            }
        }
    }

    #[test]
    fn the_logarithmic_scale_leaves_out_what_is_not_positive() {
        assert_eq!(panel(Scale::Log, &[0.0, 2e-5, 3e-3]).range(), Some((-5.0, -2.0)));
        assert_eq!(panel(Scale::Log, &[1e-3]).range(), Some((-3.0, -2.0)));
        assert_eq!(panel(Scale::Log, &[0.0]).range(), None);
        assert_eq!(panel(Scale::Free, &[f64::NAN]).range(), None);
    }

    #[test]
    fn ticks_show_the_digits_that_differ() {
        assert_eq!(Scale::Share.tick(0.4, 1.0), "40%");
        assert_eq!(Scale::SmallShare.tick(0.015, 0.03), "1.5%");
        assert_eq!(Scale::Log.tick(-4.0, 3.0), "1e-4");
        assert_eq!(Scale::FromZero.tick(5000.0, 12_000.0), "5k");
        assert_eq!(Scale::FromZero.tick(600.0, 3000.0), "600");
        assert_eq!(Scale::Free.tick(0.25, 1.0), "0.25");
        assert_eq!(Scale::Free.tick(-1e-17, 1.0), "0");
        assert_eq!(Scale::Free.tick(0.002, 0.01), "0.002");
    }
}
