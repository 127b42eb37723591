//! Retention: objects are deleted by the date of their folders.

use std::time::{Duration, SystemTime};

use object_store::path::Path as ObjectPath;

use super::EraseError;
use crate::collections::Target;
use crate::layout::date::{days, micros};
use crate::settings::Format;
use crate::upload::{Source, delete};

impl Source {
    /// Deletes what is of days that are too long ago; how many objects.
    pub(crate) async fn expire(&self, target: &Target, timeout: Duration) -> Result<u64, EraseError> {
        let Some(keep) = self.retention_days else { return Ok(0) };
        let today = micros(SystemTime::now()) / 86_400_000_000;
        let (mut count, mut listing) = (0, self.list(target));
        while let Some(objects) = self.listed(target, &mut listing, timeout).await? {
            let in_log = self.in_log(target);
            for object in objects {
                let below = below(target, &object.location);
                let old = last_day(below).is_some_and(|day| day + u64::from(keep) < today);
                if old && self.is_ours(below) && !in_log.contains(&object.location) {
                    delete(target, &object.location, timeout)
                        .await
                        .map_err(|error| self.blob_error(&object.location, error))?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    /// Whether an object is of this service, or of this instance: rows may say that they are of another workspace or service, and others may keep theirs there.
    fn is_ours(&self, path: &str) -> bool {
        let by_name = || {
            let name = path.rsplit('/').next().unwrap_or_default();
            self.layout.format == Format::Csv && name.contains(&format!("-{}-", self.instance))
        };
        path.starts_with(self.layout.prefix()) || by_name()
    }
}

fn below<'a>(target: &Target, path: &'a ObjectPath) -> &'a str {
    path.as_ref().strip_prefix(target.at.as_ref()).unwrap_or(path.as_ref()).trim_start_matches('/')
}

/// The last day, since 1970, that the folders of a path have: `…/2026/11/30/08/…`, `…/2026/11/…`, `…/2026/…`.
///
/// Folders of dates are the last ones, so they are looked for from the end.
fn last_day(path: &str) -> Option<u64> {
    let folders: Vec<&str> = path.split('/').collect();
    let (_, folders) = folders.split_last()?;
    let number = |text: &&str, digits: usize| {
        (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    let first = folders.len().saturating_sub(5);
    let at = (first..folders.len()).find(|at| {
        let rest = folders.get(at + 1..).unwrap_or_default();
        folders.get(*at).is_some_and(|year| number(year, 4).is_some_and(|year| (1970..=9999).contains(&year)))
            && rest.iter().all(|part| number(part, 2).is_some())
    })?;
    let part = |nth: usize| folders.get(at + nth);
    let year = number(part(0)?, 4)?;
    let Some(month) = part(1).and_then(|month| number(month, 2)) else {
        return days(year, 12, 31);
    };
    let Some(day) = part(2).and_then(|day| number(day, 2)) else {
        return (28..=31).rev().find_map(|last| days(year, month, last));
    };
    days(year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_an_object_is_that_of_its_folders() {
        let day = |path| last_day(path);
        assert_eq!(day("modelDataCollector/e/d/c/2026/11/30/08/i-1.jsonl"), days(2026, 11, 30));
        assert_eq!(day("modelDataCollector/e/d/c/2026/11/30/08/59/i-1.jsonl"), days(2026, 11, 30));
        assert_eq!(day("modelDataCollector/e/d/c/2026/11/i-1.jsonl"), days(2026, 11, 30));
        assert_eq!(day("modelDataCollector/e/d/c/2026/i-1.jsonl"), days(2026, 12, 31));
        assert_eq!(
            day("modeldata/s/g/w/service/model/1/inputs/2026/11/30/inputs-i-1.csv"),
            days(2026, 11, 30)
        );
        for none in
            ["i-1.jsonl", "a/b/c.jsonl", "2026/13/x.jsonl", "a/2026/11/30/08/59/59/i.jsonl", "2026/1/i.jsonl"]
        {
            assert_eq!(day(none), None, "{none}");
        }
    }
}
