//! The seven stages as one SVG that steps through them by itself, also as an image in a page: no script, and its fonts
//! within it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::canvas::{Canvas, document};
use super::text::{BOLD, FAMILY, REGULAR};

const SECONDS_PER_STAGE: usize = 4;

pub(super) fn document_of(stages: &[Canvas]) -> String {
    let count = stages.len();
    let (whole, share) = (SECONDS_PER_STAGE * count, 100.0 / count as f32);
    let mut style = String::new();
    for (weight, font) in [(400, REGULAR), (600, BOLD)] {
        let font = STANDARD.encode(font);
        // Writing to a string cannot fail.
        let _ = writeln!(
            style,
            "@font-face{{font-family:{FAMILY};font-weight:{weight};src:url(data:font/otf;base64,{font})}}"
        );
    }
    // Each stage is shown in its share of the time. Without motion, for those who want none and where there is none, the
    // peak stands still.
    let _ = writeln!(
        style,
        ".stage{{visibility:hidden;animation:stage {whole}s step-end infinite}}\n\
         #stage-4{{visibility:visible}}\n\
         @keyframes stage{{0%{{visibility:visible}}{share:.3}%,100%{{visibility:hidden}}}}\n\
         @media (prefers-reduced-motion:reduce){{.stage{{animation:none}}}}"
    );
    // The animations run already when the picture is loaded: none waits in its resting state.
    for stage in 0..count {
        let delay = (count - stage) % count * SECONDS_PER_STAGE;
        let _ = writeln!(style, "#stage-{}{{animation-delay:-{delay}s}}", stage + 1);
    }
    let mut body = String::new();
    for (number, stage) in (1..).zip(stages) {
        let _ = writeln!(body, "<g class=\"stage\" id=\"stage-{number}\">\n{}</g>", stage.body);
    }
    document(&format!("<style>\n{style}</style>\n"), &body)
}
