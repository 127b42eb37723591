//! Which of the calls that wait for a model are run together, and whether now or later: a pure function of what waits, of what a run is
//! known to cost, and of the time.
//!
//! Calls go together where their buckets agree, the most urgent first, up to so many rows and bytes, and only as many as leave the run
//! time to end before the earliest deadline among them. Nobody is passed over for longer than [`AGEING`]: a call without a deadline
//! counts as if it had one that long after it came.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long calls with a deadline may go before one without.
const AGEING: Duration = Duration::from_secs(1);

/// What calls have in common that can be run together: all that is not the number of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    /// The extents behind the first one of each input, where the model leaves them free.
    pub(super) extents: Vec<i64>,
    /// The outputs that are asked for.
    pub(super) outputs: Vec<usize>,
}

/// A call that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) bucket: Bucket,
    /// It cannot be run with others, whatever they are.
    pub(super) alone: bool,
    pub(super) rows: usize,
    /// The bytes of its inputs, or those of its outputs where they are more.
    pub(super) bytes: usize,
    /// The bytes that steps around the model take for it.
    pub(super) steps: usize,
    pub(super) since: Instant,
    pub(super) deadline: Option<Instant>,
}

/// How far a batch may grow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    pub(super) steps: usize,
    /// How long a batch that could grow may be held back.
    pub(super) hold: Duration,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Nothing waits.
    Nothing,
    /// Run those at these places of the list, together.
    Now(Vec<usize>),
    /// Look again then, if nothing comes before.
    Later(Instant),
}

/// Chooses. `cost` is how long a run of so many rows takes, where that is known.
pub(super) fn choose<W: AsRef<Waiting>>(
    waiting: &VecDeque<W>,
    rules: &Rules,
    cost: impl Fn(&Bucket, usize) -> Option<Duration>,
    now: Instant,
) -> Choice {
    let order = order(waiting);
    let get = |place: &usize| waiting.get(*place).map(|call| (*place, call.as_ref()));
    let Some((_, head)) = order.first().and_then(get) else { return Choice::Nothing };
    if rules.hold.is_zero() {
        let alike = order.iter().filter_map(get).filter(|(place, call)| {
            Some(place) == order.first() || !head.alone && !call.alone && call.bucket == head.bucket
        });
        return Choice::Now(Batch::of(alike, rules, &cost, now).places);
    }
    let mut earliest: Option<Instant> = None;
    for group in groups(order.iter().filter_map(get)) {
        let batch = Batch::of(group.into_iter(), rules, &cost, now);
        match batch.due(rules, &cost, now) {
            None => return Choice::Now(batch.places),
            Some(due) => earliest = Some(earliest.map_or(due, |earliest| earliest.min(due))),
        }
    }
    earliest.map_or(Choice::Nothing, Choice::Later)
}

/// The places of the list, the most urgent first: as they came, where nobody has a deadline.
fn order<W: AsRef<Waiting>>(waiting: &VecDeque<W>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    if waiting.iter().any(|call| call.as_ref().deadline.is_some()) {
        order.sort_by_key(|place| waiting.get(*place).map(|call| urgency(call.as_ref())));
    }
    order
}

fn urgency(call: &Waiting) -> Instant {
    let aged = call.since + AGEING;
    call.deadline.map_or(aged, |deadline| deadline.min(aged))
}

/// Those that could go together, group by group, in the order of their first ones.
fn groups<'a>(calls: impl Iterator<Item = (usize, &'a Waiting)>) -> Vec<Vec<(usize, &'a Waiting)>> {
    let mut groups: Vec<Vec<(usize, &Waiting)>> = Vec::new();
    let mut known: HashMap<&Bucket, usize> = HashMap::new();
    for (place, call) in calls {
        if call.alone {
            groups.push(vec![(place, call)]);
            continue;
        }
        let number = *known.entry(&call.bucket).or_insert(groups.len());
        match groups.get_mut(number) {
            Some(group) => group.push((place, call)),
            None => groups.push(vec![(place, call)]),
        }
    }
    groups
}

/// A batch that is being put together.
struct Batch<'a> {
    places: Vec<usize>,
    first: Option<&'a Waiting>,
    rows: usize,
    bytes: usize,
    steps: usize,
    /// Since when the one waits that came first.
    since: Option<Instant>,
    /// The earliest deadline that can be met.
    deadline: Option<Instant>,
    /// It cannot grow.
    full: bool,
}

impl<'a> Batch<'a> {
    /// Takes of `calls`, which could all go together, as many as may.
    fn of(
        calls: impl Iterator<Item = (usize, &'a Waiting)>,
        rules: &Rules,
        cost: &impl Fn(&Bucket, usize) -> Option<Duration>,
        now: Instant,
    ) -> Self {
        let mut batch = Self {
            places: Vec::new(),
            first: None,
            rows: 0,
            bytes: 0,
            steps: 0,
            since: None,
            deadline: None,
            full: false,
        };
        for (place, call) in calls {
            let (rows, bytes) =
                (batch.rows.saturating_add(call.rows), batch.bytes.saturating_add(call.bytes));
            let steps = batch.steps.saturating_add(call.steps);
            let is_over = rows > rules.rows || bytes > rules.bytes || steps > rules.steps;
            let ends = |rows: usize| cost(&call.bucket, rows).map(|cost| now + cost);
            // What cannot be met even alone need not keep the others apart.
            let own = call.deadline.filter(|deadline| ends(call.rows).is_none_or(|end| end <= *deadline));
            let deadline = [batch.deadline, own].into_iter().flatten().min();
            let late = deadline.is_some_and(|deadline| ends(rows).is_some_and(|end| end > deadline));
            if batch.first.is_some() && (is_over || late) {
                batch.full = true;
                break;
            }
            batch.places.push(place);
            batch.first.get_or_insert(call);
            (batch.rows, batch.bytes, batch.steps, batch.deadline) = (rows, bytes, steps, deadline);
            batch.since = Some(batch.since.map_or(call.since, |since| since.min(call.since)));
            if call.alone || rows >= rules.rows || steps >= rules.steps {
                batch.full = true;
                break;
            }
        }
        batch
    }

    /// Until when it may be held back; `None` if it is due.
    fn due(
        &self,
        rules: &Rules,
        cost: &impl Fn(&Bucket, usize) -> Option<Duration>,
        now: Instant,
    ) -> Option<Instant> {
        let (first, since) = (self.first?, self.since?);
        if self.full {
            return None;
        }
        let mut due = since + rules.hold;
        if let Some(deadline) = self.deadline {
            // One more may come until then, and nobody knows of how many rows: what a full batch takes.
            let latest = cost(&first.bucket, rules.rows).and_then(|cost| deadline.checked_sub(cost));
            due = due.min(latest.unwrap_or(now));
        }
        (due > now).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl AsRef<Waiting> for Waiting {
        fn as_ref(&self) -> &Waiting {
            self
        }
    }

    const MS: Duration = Duration::from_millis(1);

    fn call(bucket: i64, rows: usize, since: Instant) -> Waiting {
        Waiting {
            bucket: Bucket { extents: vec![bucket], outputs: vec![0] },
            alone: false,
            rows,
            bytes: rows,
            steps: rows,
            since,
            deadline: None,
        }
    }

    fn rules(rows: usize, hold: Duration) -> Rules {
        Rules { rows, bytes: 1000, steps: 1000, hold }
    }

    fn unknown(_: &Bucket, _: usize) -> Option<Duration> {
        None
    }

    /// 1 ms for each row, and 2 more.
    fn known(_: &Bucket, rows: usize) -> Option<Duration> {
        Some(MS * (rows as u32 + 2))
    }

    #[test]
    fn those_that_wait_go_together_up_to_the_limits() {
        let now = Instant::now();
        let check = |calls: &[(i64, usize)], most: usize, expected: &[usize]| {
            let waiting = calls.iter().map(|(bucket, rows)| call(*bucket, *rows, now)).collect();
            let choice = choose(&waiting, &rules(most, Duration::ZERO), unknown, now);
            assert_eq!(choice, Choice::Now(expected.into()), "{calls:?}");
        };
        check(&[(0, 1)], 4, &[0]);
        check(&[(0, 1), (0, 1), (0, 1)], 4, &[0, 1, 2]);
        check(&[(0, 1), (0, 1), (0, 1)], 2, &[0, 1]);
        // Buckets do not mix; the oldest call's goes first.
        check(&[(1, 1), (0, 1), (1, 2), (0, 1)], 4, &[0, 2]);
        // Rows count, not calls. Who comes behind one that does not fit does not overtake it.
        check(&[(0, 3), (0, 2), (0, 1)], 4, &[0]);
        check(&[(0, 2), (0, 2), (0, 1)], 4, &[0, 1]);
        // One that is larger than any batch goes alone, and at once.
        check(&[(0, 9), (0, 1)], 4, &[0]);
        check(&[(0, 1), (0, 9)], 4, &[0]);
        assert_eq!(choose(&VecDeque::<Waiting>::new(), &rules(4, MS), unknown, now), Choice::Nothing);
    }

    #[test]
    fn bytes_are_a_limit_too() {
        let now = Instant::now();
        let waiting = (0..4).map(|_| Waiting { bytes: 400, ..call(0, 1, now) }).collect();
        assert_eq!(choose(&waiting, &rules(9, Duration::ZERO), unknown, now), Choice::Now(vec![0, 1]));
        let waiting = [Waiting { bytes: 4000, ..call(0, 1, now) }].into();
        assert_eq!(choose(&waiting, &rules(9, Duration::ZERO), unknown, now), Choice::Now(vec![0]));
    }

    #[test]
    fn what_steps_take_is_a_limit_too_and_a_batch_that_takes_all_of_it_is_full() {
        let now = Instant::now();
        let with = |steps: &[usize]| -> VecDeque<_> {
            steps.iter().map(|steps| Waiting { steps: *steps, ..call(0, 1, now) }).collect()
        };
        let ask = |steps: &[usize]| choose(&with(steps), &rules(9, MS), unknown, now);
        assert_eq!(ask(&[400, 599]), Choice::Later(now + MS));
        assert_eq!(ask(&[400, 600]), Choice::Now(vec![0, 1]));
        assert_eq!(ask(&[400, 599, 2]), Choice::Now(vec![0, 1]));
        assert_eq!(ask(&[1000]), Choice::Now(vec![0]));
    }

    #[test]
    fn one_that_cannot_be_run_with_others_is_not() {
        let now = Instant::now();
        for hold in [Duration::ZERO, MS] {
            let alone = Waiting { alone: true, ..call(0, 1, now) };
            let waiting = [alone.clone(), call(0, 1, now), alone].into();
            assert_eq!(choose(&waiting, &rules(9, hold), unknown, now), Choice::Now(vec![0]), "{hold:?}");
        }
    }

    #[test]
    fn a_batch_that_can_grow_is_held_back_and_a_full_one_is_not() {
        let now = Instant::now();
        let mut waiting: VecDeque<_> = [call(0, 1, now), call(1, 2, now + MS), call(1, 1, now + MS)].into();
        let rules = rules(4, MS * 5);
        let ask =
            |waiting: &VecDeque<Waiting>, after: u32| choose(waiting, &rules, unknown, now + MS * after);
        assert_eq!(ask(&waiting, 1), Choice::Later(now + MS * 5));
        // The second bucket is full before the first one's time is over.
        waiting.push_back(call(1, 1, now + MS * 2));
        assert_eq!(ask(&waiting, 2), Choice::Now(vec![1, 2, 3]));
        waiting.truncate(3);
        assert_eq!(ask(&waiting, 5), Choice::Now(vec![0]));
        waiting.pop_front();
        assert_eq!(ask(&waiting, 5), Choice::Later(now + MS * 6));
        assert_eq!(ask(&waiting, 6), Choice::Now(vec![0, 1]));
        // One more that does not fit is no reason to wait either.
        waiting.push_back(call(1, 2, now + MS * 2));
        assert_eq!(ask(&waiting, 2), Choice::Now(vec![0, 1]));
    }

    #[test]
    fn the_earliest_deadline_bounds_the_width() {
        let now = Instant::now();
        let mut waiting: VecDeque<_> = (0..8).map(|_| call(0, 1, now)).collect();
        let ask = |waiting: &VecDeque<Waiting>, cost: fn(&Bucket, usize) -> Option<Duration>| {
            choose(waiting, &rules(8, Duration::ZERO), cost, now)
        };
        waiting[5].deadline = Some(now + MS * 5);
        // 3 rows take 5 ms; the one in a hurry is one of them.
        assert_eq!(ask(&waiting, known), Choice::Now(vec![5, 0, 1]));
        assert_eq!(ask(&waiting, unknown), Choice::Now(vec![5, 0, 1, 2, 3, 4, 6, 7]));
        // What cannot be met does not make the others slower.
        waiting[5].deadline = Some(now + MS * 2);
        assert_eq!(ask(&waiting, known), Choice::Now(vec![5, 0, 1, 2, 3, 4, 6, 7]));
    }

    #[test]
    fn nobody_is_held_back_past_a_deadline() {
        let now = Instant::now();
        let hurry = Waiting { deadline: Some(now + MS * 20), ..call(0, 1, now) };
        let ask = |waiting: &VecDeque<Waiting>, cost: fn(&Bucket, usize) -> Option<Duration>, after: u32| {
            choose(waiting, &rules(8, MS * 100), cost, now + MS * after)
        };
        let waiting = [call(0, 1, now), hurry].into();
        // A full batch takes 10 ms.
        assert_eq!(ask(&waiting, known, 0), Choice::Later(now + MS * 10));
        assert_eq!(ask(&waiting, known, 10), Choice::Now(vec![1, 0]));
        // What a run takes is not known: better not to wait.
        assert_eq!(ask(&waiting, unknown, 0), Choice::Now(vec![1, 0]));
    }

    #[test]
    fn calls_without_a_deadline_are_not_passed_over_for_ever() {
        let now = Instant::now();
        let patient = call(0, 1, now);
        for (after, first) in [(MS, 1), (AGEING, 0)] {
            let deadline = Some(now + after + MS * 100);
            let hurry = Waiting { deadline, ..call(1, 1, now + after) };
            let waiting = [patient.clone(), hurry].into();
            let choice = choose(&waiting, &rules(8, Duration::ZERO), known, now + after);
            assert_eq!(choice, Choice::Now(vec![first]));
        }
    }
}
