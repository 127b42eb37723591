//! Times of keys: how long they live, and dates for people.

use anyhow::{Context as _, bail};

const DAY: u64 = 86_400;
/// The longest that a key lives which has an end: a hundred years.
const LONGEST: u64 = 36_525 * DAY;

/// `90d`, `12h`, `30m` or `45s`; `never` is no end.
pub(super) fn lifetime(text: &str) -> anyhow::Result<Option<u64>> {
    if text == "never" {
        return Ok(None);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => DAY,
        Some('y') => 365 * DAY,
        _ => bail!("`{text}` is no lifetime, such as 90d, 12h, 30m, 45s or 1y, or `never`"),
    };
    let number = &text[..text.len() - 1];
    let count: u64 =
        number.parse().with_context(|| format!("`{text}` is no lifetime, such as 90d, or `never`"))?;
    match count.checked_mul(unit) {
        Some(seconds) if (1..=LONGEST).contains(&seconds) => Ok(Some(seconds)),
        _ => bail!("`{text}` is no lifetime: from a second to a hundred years"),
    }
}

/// Seconds since 1970 as `2026-03-01 12:00:00Z`.
///
/// Source: Howard Hinnant, *chrono-Compatible Low-Level Date Algorithms*, `civil_from_days`.
pub(super) fn shown(seconds: u64) -> String {
    let (days, rest) = (seconds / DAY, seconds % DAY);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let check =
            |text: &str, expected: Option<Option<u64>>| assert_eq!(lifetime(text).ok(), expected, "{text}");
        check("90d", Some(Some(90 * DAY)));
        check("12h", Some(Some(43_200)));
        check("45s", Some(Some(45)));
        check("1y", Some(Some(365 * DAY)));
        check("never", Some(None));
        for wrong in ["", "d", "90", "0d", "-1d", "1.5d", "90 d", "101y", "99999999999999999999d", "1é"] {
            check(wrong, None);
        }
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_827_696, "2000-02-29 12:34:56Z"),
            (1_709_210_096, "2024-02-29 12:34:56Z"),
            (1_735_689_599, "2024-12-31 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(shown(seconds), text);
        }
    }
}
