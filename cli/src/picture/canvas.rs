//! A sheet to draw on: shapes and text in, SVG out. It remembers where text stands, so that tests can see overlaps.

use std::fmt::Write as _;

use super::text::{FAMILY, Font, escape};

pub(super) const WIDTH: f32 = 1280.0;
pub(super) const HEIGHT: f32 = 720.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rect {
    pub(super) x: f32,
    pub(super) y: f32,
    pub(super) w: f32,
    pub(super) h: f32,
}

pub(super) const fn rect(x: f32, y: f32, w: f32, h: f32) -> Rect {
    Rect { x, y, w, h }
}

impl Rect {
    pub(super) fn right(self) -> f32 {
        self.x + self.w
    }

    pub(super) fn bottom(self) -> f32 {
        self.y + self.h
    }

    /// Cut into parts of these shares, side by side.
    pub(super) fn columns(self, shares: &[f32], gap: f32) -> Vec<Self> {
        let unit = (self.w - gap * (shares.len() as f32 - 1.0)) / shares.iter().sum::<f32>();
        let mut x = self.x;
        let mut column = |share: &f32| {
            let column = Self { x, w: unit * share, ..self };
            x = column.right() + gap;
            column
        };
        shares.iter().map(&mut column).collect()
    }
}

/// How a shape looks.
#[derive(Clone, Copy)]
pub(super) struct Paint {
    pub(super) fill: &'static str,
    pub(super) stroke: &'static str,
    pub(super) stroke_width: f32,
    pub(super) dashed: bool,
    pub(super) radius: f32,
    pub(super) opacity: f32,
}

pub(super) const fn fill(fill: &'static str) -> Paint {
    Paint { fill, stroke: "none", stroke_width: 0.0, dashed: false, radius: 0.0, opacity: 1.0 }
}

impl Paint {
    pub(super) const fn stroke(self, stroke: &'static str, stroke_width: f32) -> Self {
        Self { stroke, stroke_width, ..self }
    }

    pub(super) const fn dashed(self) -> Self {
        Self { dashed: true, ..self }
    }

    pub(super) const fn round(self, radius: f32) -> Self {
        Self { radius, ..self }
    }

    pub(super) const fn opacity(self, opacity: f32) -> Self {
        Self { opacity, ..self }
    }

    fn attributes(self) -> String {
        let mut text = format!(r#" fill="{}""#, self.fill);
        if self.stroke != "none" {
            let _ = write!(text, r#" stroke="{}" stroke-width="{}""#, self.stroke, self.stroke_width);
        }
        if self.dashed {
            text.push_str(r#" stroke-dasharray="4 3""#);
        }
        if self.opacity < 1.0 {
            let _ = write!(text, r#" opacity="{}""#, self.opacity);
        }
        text
    }
}

#[derive(Default)]
pub(super) struct Canvas {
    /// Elements, without the `svg` around them.
    pub(super) body: String,
    /// Each text, and where it stands.
    #[cfg(test)]
    pub(super) texts: Vec<(String, Rect)>,
}

// Writing to a string cannot fail.
impl Canvas {
    pub(super) fn rect(&mut self, at: Rect, paint: Paint) {
        let Rect { x, y, w, h } = at;
        let _ = write!(self.body, r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}""#);
        if paint.radius > 0.0 {
            let _ = write!(self.body, r#" rx="{}""#, paint.radius);
        }
        let _ = writeln!(self.body, "{}/>", paint.attributes());
    }

    pub(super) fn circle(&mut self, x: f32, y: f32, radius: f32, paint: Paint) {
        let attributes = paint.attributes();
        let _ = writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}"{attributes}/>"#);
    }

    pub(super) fn path(&mut self, path: &str, paint: Paint) {
        let _ = writeln!(self.body, r#"<path d="{path}"{}/>"#, paint.attributes());
    }

    pub(super) fn line(&mut self, from: (f32, f32), to: (f32, f32), paint: Paint) {
        self.path(&format!("M{:.1} {:.1}L{:.1} {:.1}", from.0, from.1, to.0, to.1), paint);
    }

    /// From `x` to the right, on the baseline `y`. Returns where it ends.
    pub(super) fn text(&mut self, x: f32, y: f32, font: Font, text: &str) -> f32 {
        let width = font.width(text);
        if text.is_empty() {
            return x;
        }
        let weight = if font.bold { " font-weight=\"600\"" } else { "" };
        // The length holds the layout together where the page that shows the SVG forbids its font.
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{}" fill="{}"{weight} textLength="{width:.1}" lengthAdjust="spacingAndGlyphs">{}</text>"#,
            font.size,
            font.fill,
            escape(text)
        );
        #[cfg(test)]
        {
            // Inter's capitals rise 0.73 above the baseline, its descenders 0.2 below.
            let place = rect(x, y - 0.73 * font.size, width, 0.93 * font.size);
            self.texts.push((text.to_owned(), place));
        }
        x + width
    }

    /// Ends at `x`. Returns where it begins.
    pub(super) fn text_right(&mut self, x: f32, y: f32, font: Font, text: &str) -> f32 {
        let left = x - font.width(text);
        self.text(left, y, font, text);
        left
    }

    pub(super) fn text_middle(&mut self, x: f32, y: f32, font: Font, text: &str) {
        self.text(x - font.width(text) / 2.0, y, font, text);
    }

    /// The sheet as a document of its own.
    pub(super) fn document(&self) -> String {
        document("", &self.body)
    }
}

/// An SVG document around elements.
pub(super) fn document(head: &str, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"{FAMILY}, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\">\n{head}{body}</svg>\n"
    )
}
