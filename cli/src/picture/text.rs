//! Text with the fonts that come along, so that it is as wide here as in every picture: measured, shortened, wrapped.

use std::sync::{Arc, LazyLock};

use resvg::usvg::fontdb;
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider as _};

pub(super) const FAMILY: &str = "Inter";
pub(super) const REGULAR: &[u8] = include_bytes!("../../fonts/Inter-Regular.otf");
pub(super) const BOLD: &[u8] = include_bytes!("../../fonts/Inter-SemiBold.otf");

/// No fonts of the system: the same look everywhere.
pub(super) static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    [REGULAR, BOLD].into_iter().for_each(|font| fonts.load_font_data(font.to_vec()));
    Arc::new(fonts)
});

/// By [`Font::bold`], then by character: advance at size 1.
static ADVANCES: LazyLock<[Vec<f32>; 2]> = LazyLock::new(|| {
    [REGULAR, BOLD].map(|font| {
        let font = FontRef::new(font).expect("the fonts that come along are fonts");
        let (characters, metrics) = (font.charmap(), font.glyph_metrics(Size::new(1.0), LocationRef::default()));
        let advance = |c: u32| characters.map(c).and_then(|glyph| metrics.advance_width(glyph));
        (0..0x2200).map(|c| advance(c).unwrap_or(0.0)).collect()
    })
});

/// How a text looks.
#[derive(Clone, Copy)]
pub(super) struct Font {
    pub(super) size: f32,
    pub(super) bold: bool,
    pub(super) fill: &'static str,
}

pub(super) const fn plain(size: f32, fill: &'static str) -> Font {
    Font { size, bold: false, fill }
}

pub(super) const fn bold(size: f32, fill: &'static str) -> Font {
    Font { size, bold: true, fill }
}

impl Font {
    /// Exact: the fonts have no kerning.
    pub(super) fn width(self, text: &str) -> f32 {
        let advances = &ADVANCES[usize::from(self.bold)];
        text.chars().map(|c| advances.get(c as usize).unwrap_or(&0.0)).sum::<f32>() * self.size
    }

    /// As much of the text as fits, with an ellipsis where something is missing.
    pub(super) fn shorten(self, text: &str, width: f32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let mut short = text.to_owned();
        while short.pop().is_some() {
            let candidate = format!("{}…", short.trim_end_matches([' ', ',', ':', ';', '·']));
            if self.width(&candidate) <= width {
                return candidate;
            }
        }
        String::new()
    }

    /// Broken between words into at most so many lines; the last is shortened.
    pub(super) fn wrap(self, text: &str, width: f32, lines: usize) -> Vec<String> {
        let mut wrapped: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            let full = wrapped.len() == lines;
            match wrapped.last_mut() {
                Some(line) if full || self.width(&format!("{line} {word}")) <= width => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => wrapped.push(word.to_owned()),
            }
        }
        wrapped.into_iter().map(|line| self.shorten(&line, width)).collect()
    }
}

/// For text from outside. What the fonts have no glyph for becomes a question mark.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ if ADVANCES[0].get(c as usize).is_some_and(|advance| *advance > 0.0) => escaped.push(c),
            _ => escaped.push('?'),
        }
    }
    escaped
}
