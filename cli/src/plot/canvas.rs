//! Draws figures with plotters, as SVG and as PNG.

use std::path::Path;

use anyhow::anyhow;
use plotters::{
    chart::{ChartContext, SeriesLabelPosition},
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
    style::{FontStyle, register_font},
};

use super::figure::{Figure, Hue, Marks, Panel, Series};

/// Family of all text: embedded in the program for PNG, the viewer's own in SVG.
const FONT: &str = "sans-serif";
/// Size of a panel, in units that are one pixel in SVG.
const PANEL: (u32, u32) = (520, 260);
/// A panel that is alone in its figure.
const LONE_PANEL: (u32, u32) = (900, 480);
const TITLE_HEIGHT: u32 = 44;
/// PNG has this many pixels per unit, to be sharp on dense screens.
const PNG_DENSITY: u32 = 2;

const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xe6, 0xe6, 0xe6);
const COLD_START: RGBColor = RGBColor(0xf3, 0xf0, 0xe6);

type Axes = Cartesian2d<RangedCoordf64, RangedCoordf64>;

/// Makes the embedded fonts known; once per process, before the first figure.
pub(super) fn register_fonts() -> anyhow::Result<()> {
    for (style, bytes) in
        [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())]
    {
        register_font(FONT, style, bytes)
            .map_err(|_| anyhow!("the embedded font is unreadable"))?;
    }
    Ok(())
}

/// Draws into an SVG file.
pub(super) fn draw_svg(figure: &Figure, path: &Path) -> anyhow::Result<()> {
    let area = SVGBackend::new(path, size(figure)).into_drawing_area();
    Canvas { density: 1 }.draw(&area, figure).map_err(|error| anyhow!("{error}"))
}

/// Draws into a PNG file.
pub(super) fn draw_png(figure: &Figure, path: &Path) -> anyhow::Result<()> {
    let (width, height) = size(figure);
    let pixels = (width * PNG_DENSITY, height * PNG_DENSITY);
    let area = BitMapBackend::new(path, pixels).into_drawing_area();
    Canvas { density: PNG_DENSITY }.draw(&area, figure).map_err(|error| anyhow!("{error}"))
}

fn size(figure: &Figure) -> (u32, u32) {
    let (width, height) = if figure.panels.len() == 1 { LONE_PANEL } else { PANEL };
    let columns = figure.columns.max(1) as u32;
    let rows = (figure.panels.len() as u32).div_ceil(columns);
    (width * columns, height * rows + TITLE_HEIGHT)
}

/// Turns units into pixels.
#[derive(Clone, Copy)]
struct Canvas {
    density: u32,
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

impl Canvas {
    fn px(self, units: u32) -> u32 {
        units * self.density
    }

    fn text(self, units: u32) -> TextStyle<'static> {
        (FONT, self.px(units)).into_font().color(&INK)
    }

    fn draw<B: DrawingBackend>(self, area: &DrawingArea<B, Shift>, figure: &Figure) -> Drawn<B> {
        area.fill(&WHITE)?;
        let title = (FONT, self.px(22)).into_font().style(FontStyle::Bold).color(&INK);
        let (top, grid) = area.split_vertically(self.px(TITLE_HEIGHT));
        let at = (self.px(16) as i32, self.px(16) as i32);
        top.draw(&Text::new(figure.title, at, title))?;
        let columns = figure.columns.max(1);
        let rows = figure.panels.len().div_ceil(columns);
        for (cell, panel) in grid.split_evenly((rows, columns)).iter().zip(&figure.panels) {
            self.draw_panel(cell, figure, panel)?;
        }
        area.present()
    }

    fn draw_panel<B: DrawingBackend>(
        self,
        cell: &DrawingArea<B, Shift>,
        figure: &Figure,
        panel: &Panel,
    ) -> Drawn<B> {
        let (low, high) = panel.range().unwrap_or((0.0, 1.0));
        let mut chart = ChartBuilder::on(cell)
            .margin(self.px(10))
            .margin_right(self.px(18))
            .caption(panel.title, self.text(16))
            .set_label_area_size(LabelAreaPosition::Left, self.px(58))
            .set_label_area_size(LabelAreaPosition::Bottom, self.px(38))
            .build_cartesian_2d(0.0..figure.last_step * 1.02, low..high)?;
        if panel.range().is_none() {
            let middle = (figure.last_step / 2.0, 0.5);
            chart.draw_series([Text::new("no data", middle, self.text(15))])?;
            return Ok(());
        }
        self.shade_cold_start(&mut chart, figure, (low, high))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .x_labels(8)
            .y_labels(panel.scale.ticks(high - low))
            .label_style(self.text(13))
            .x_desc("optimizer step")
            .axis_desc_style(self.text(13))
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|placed| panel.scale.tick(*placed, high - low))
            .draw()?;
        for series in &panel.series {
            self.draw_series(&mut chart, panel, series)?;
        }
        if panel.series.iter().any(|series| !series.label.is_empty()) {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .margin(self.px(8))
                .legend_area_size(self.px(26))
                .label_font(self.text(14))
                .draw()?;
        }
        Ok(())
    }

    fn shade_cold_start<B: DrawingBackend>(
        self,
        chart: &mut ChartContext<'_, B, Axes>,
        figure: &Figure,
        (low, high): (f64, f64),
    ) -> Drawn<B> {
        let Some(end) = figure.cold_start_step.filter(|end| *end > 0.0) else { return Ok(()) };
        let corners = [(0.0, low), (end.min(figure.last_step), high)];
        chart.draw_series([Rectangle::new(corners, COLD_START.filled())])?;
        let at = (figure.last_step * 0.006, high - (high - low) * 0.015);
        chart.draw_series([Text::new("cold start", at, self.text(12))])?;
        Ok(())
    }

    fn draw_series<'a, B: DrawingBackend + 'a>(
        self,
        chart: &mut ChartContext<'a, B, Axes>,
        panel: &Panel,
        series: &Series,
    ) -> Drawn<B> {
        let color = rgb(series.hue);
        let placed = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().filter_map(|(x, y)| Some((*x, panel.scale.place(*y)?))).collect()
        };
        let (radius, middle) = (self.px(4), self.px(13) as i32);
        let annotation = match &series.marks {
            Marks::Line(points) => {
                let style = color.stroke_width(self.px(2));
                let length = self.px(24) as i32;
                let drawn = chart.draw_series(LineSeries::new(placed(points), style))?;
                drawn.legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + length, y)], style).into_dyn()
                })
            }
            Marks::Dots(points) => {
                let faint = color.mix(0.35).filled();
                let radius = self.px(2);
                let dots = placed(points).into_iter().map(|at| Circle::new(at, radius, faint));
                let drawn = chart.draw_series(dots)?;
                drawn.legend(move |(x, y)| Circle::new((x + middle, y), radius, faint).into_dyn())
            }
            Marks::Intervals(points) => {
                let style = color.stroke_width(self.px(2));
                let bars = points.iter().map(|(x, low, y, high)| {
                    ErrorBar::new_vertical(*x, *low, *y, *high, style.filled(), self.px(10))
                });
                chart.draw_series(bars)?;
                let dots = points.iter().map(|(x, _, y, _)| (*x, *y));
                let dots = dots.map(|at| Circle::new(at, radius, color.filled()));
                let drawn = chart.draw_series(dots)?;
                drawn.legend(move |(x, y)| {
                    Circle::new((x + middle, y), radius, color.filled()).into_dyn()
                })
            }
        };
        if !series.label.is_empty() && !series.values().is_empty() {
            annotation.label(series.label);
        }
        Ok(())
    }
}

fn rgb(hue: Hue) -> RGBColor {
    match hue {
        Hue::Blue => RGBColor(0x00, 0x72, 0xb2),
        Hue::Vermilion => RGBColor(0xd5, 0x5e, 0x00),
        Hue::Green => RGBColor(0x00, 0x9e, 0x73),
        Hue::Grey => RGBColor(0x80, 0x80, 0x80),
    }
}
