//! A scan as a small picture of characters.

use std::fmt::Write as _;

/// How ink is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Half blocks in 24-bit grey: two pixels per character.
    TrueColour,
    /// Half blocks in the 24 greys of the 256-colour palette.
    Palette,
    /// Shade characters, two per pixel, because a character is about twice as high as wide.
    Shades,
}

impl Ink {
    /// What the place where it is shown can do.
    pub(crate) fn choose(terminal: bool, no_colour: bool, colorterm: &str) -> Self {
        match (terminal && !no_colour, colorterm) {
            (false, _) => Self::Shades,
            (true, "truecolor" | "24bit") => Self::TrueColour,
            (true, _) => Self::Palette,
        }
    }

    /// Characters that a pixel is wide.
    pub(crate) fn columns(self) -> usize {
        if self == Self::Shades { 2 } else { 1 }
    }
}

/// Draws a row-major image of `width` columns; 0 is paper and 1 is ink, which is drawn bright.
pub(crate) fn draw(image: &[f64], width: usize, ink: Ink) -> Vec<String> {
    let rows: Vec<&[f64]> = image.chunks(width).collect();
    match ink {
        Ink::Shades => rows.iter().map(|row| row.iter().map(|&pixel| shade(pixel)).collect()).collect(),
        _ => rows
            .chunks(2)
            .map(|pair| half_blocks(pair[0], pair.get(1).copied().unwrap_or(&[]), ink))
            .collect(),
    }
}

fn shade(pixel: f64) -> &'static str {
    const SHADES: [&str; 5] = ["  ", "░░", "▒▒", "▓▓", "██"];
    SHADES[step(pixel, SHADES.len())]
}

/// The upper pixel is the colour of the character, the lower one that of its background.
fn half_blocks(upper: &[f64], lower: &[f64], ink: Ink) -> String {
    let mut text = String::new();
    for (column, &above) in upper.iter().enumerate() {
        let below = lower.get(column).copied().unwrap_or(0.0);
        let _ = match ink {
            Ink::TrueColour => {
                let (above, below) = (step(above, 256), step(below, 256));
                write!(text, "\x1b[38;2;{above};{above};{above};48;2;{below};{below};{below}m▀")
            }
            // 232 is nearly black, 255 nearly white.
            _ => write!(text, "\x1b[38;5;{};48;5;{}m▀", 232 + step(above, 24), 232 + step(below, 24)),
        };
    }
    text + "\x1b[0m"
}

/// Which of `steps` equal steps a value between 0 and 1 is on.
fn step(value: f64, steps: usize) -> usize {
    ((value.clamp(0.0, 1.0) * steps as f64) as usize).min(steps - 1)
}

/// A picture with lines of text below it.
pub(crate) struct Card {
    /// Lines of a picture, all as wide as the gallery says.
    pub(crate) picture: Vec<String>,
    /// Lines of text, with the colour they are written in, if any.
    pub(crate) captions: Vec<(String, Option<&'static str>)>,
}

/// Puts cards side by side, `across` in a row; pictures are `width` characters wide.
pub(crate) fn gallery(cards: &[Card], across: usize, width: usize) -> String {
    let widest = cards.iter().flat_map(|card| &card.captions).map(|(text, _)| text.chars().count()).max();
    let column = widest.unwrap_or(0).max(width);
    let mut text = String::new();
    for row in cards.chunks(across.max(1)) {
        let pictures = row.iter().map(|card| card.picture.len()).max().unwrap_or(0);
        for line in 0..pictures {
            text += "  ";
            for card in row {
                let picture = card.picture.get(line).map_or("", String::as_str);
                text += picture;
                let drawn = if picture.is_empty() { 0 } else { width };
                text += &" ".repeat(column - drawn + 2);
            }
            end_line(&mut text);
        }
        let captions = row.iter().map(|card| card.captions.len()).max().unwrap_or(0);
        for line in 0..captions {
            text += "  ";
            for card in row {
                let (caption, colour) =
                    card.captions.get(line).map_or(("", None), |(text, colour)| (text, *colour));
                let spaces = " ".repeat(column - caption.chars().count() + 2);
                match colour {
                    Some(colour) => text += &format!("\x1b[{colour}m{caption}\x1b[0m{spaces}"),
                    None => text += &(caption.to_owned() + &spaces),
                }
            }
            end_line(&mut text);
        }
        text.push('\n');
    }
    text
}

fn end_line(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_only_where_it_is_seen() {
        assert_eq!(Ink::choose(true, false, "truecolor"), Ink::TrueColour);
        assert_eq!(Ink::choose(true, false, ""), Ink::Palette);
        assert_eq!(Ink::choose(true, true, "truecolor"), Ink::Shades);
        assert_eq!(Ink::choose(false, false, "truecolor"), Ink::Shades);
    }

    #[test]
    fn shades_from_paper_to_ink() {
        assert_eq!(draw(&[0.0, 0.25, 0.5, 0.75, 1.0, 7.0], 3, Ink::Shades), ["  ░░▒▒", "▓▓████"]);
    }

    #[test]
    fn half_blocks_hold_two_rows() {
        let image = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5];
        let drawn = draw(&image, 2, Ink::Palette);
        assert_eq!(
            drawn,
            [
                "\x1b[38;5;255;48;5;232m▀\x1b[38;5;232;48;5;255m▀\x1b[0m",
                "\x1b[38;5;244;48;5;232m▀\x1b[38;5;244;48;5;232m▀\x1b[0m",
            ]
        );
        assert!(draw(&image, 2, Ink::TrueColour)[0].starts_with("\x1b[38;2;255;255;255;48;2;0;0;0m▀"));
    }

    #[test]
    fn cards_line_up() {
        let card = |picture: &str, caption: &str| Card {
            picture: picture.lines().map(str::to_owned).collect(),
            captions: vec![(caption.into(), None)],
        };
        let cards = [card("##\n##", "one"), card("@@\n@@", "two"), card("%%\n%%", "three")];
        assert_eq!(
            gallery(&cards, 2, 2),
            "  ##     @@\n  ##     @@\n  one    two\n\n  %%\n  %%\n  three\n\n"
        );
    }
}
