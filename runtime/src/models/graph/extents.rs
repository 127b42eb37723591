//! The names that extents have for callers of a graph. Models name theirs each for itself; what must be equal for the models must be equal
//! for callers, and has one name.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_backend::TensorInfo;

/// Extents of inputs, and names that nodes have for extents, those together that are equal.
pub(super) struct Extents {
    /// Where the extents of each input begin.
    starts: Vec<usize>,
    /// Of each the one that it is equal to, or itself.
    same: Vec<usize>,
    /// The names that nodes have, and graph.toml itself, with the numbers of what is called so.
    names: BTreeMap<(Option<usize>, String), usize>,
    /// What the extents are that are fixed.
    fixed: BTreeMap<usize, i64>,
    /// Extents that cannot be both.
    wrong: Option<(i64, i64)>,
    /// The names of those that are free.
    called: BTreeMap<usize, String>,
    /// All names that are given, for they may be many.
    given: BTreeSet<String>,
}

impl Extents {
    /// Of such inputs.
    pub(super) fn new(inputs: &[TensorInfo]) -> Self {
        let mut next = 0;
        let begin = |info: &TensorInfo| {
            let start = next;
            next += info.shape.len();
            start
        };
        let starts = inputs.iter().map(begin).collect();
        let (names, fixed, called, given) = Default::default();
        Self { starts, same: (0..next).collect(), names, fixed, wrong: None, called, given }
    }

    /// The extents of an input are such for a node, or as graph.toml says.
    pub(super) fn are<'a>(
        &mut self,
        input: usize,
        node: Option<usize>,
        dimensions: impl Iterator<Item = (i64, &'a str)>,
    ) {
        let Some(start) = self.starts.get(input).copied() else { return };
        for (at, (extent, symbol)) in dimensions.enumerate() {
            if extent >= 0 {
                self.fix(start + at, extent);
            } else if !symbol.is_empty() {
                let named = self.named(node, symbol);
                self.unite(start + at, named);
            }
        }
    }

    /// Names the free extents of inputs, and fixes those that cannot but be fixed.
    ///
    /// # Errors
    /// If one would have to be two.
    pub(super) fn name<'a>(
        &mut self,
        inputs: &mut [TensorInfo],
        node_name: impl Fn(usize) -> &'a str,
    ) -> Result<(), String> {
        if let Some((one, other)) = self.wrong {
            return Err(format!(
                "what inputs are taken for contradicts itself: extents that are equal for one node are {one} and {other}"
            ));
        }
        // What graph.toml says goes before what the nodes say, which come in their order.
        let known: Vec<_> = self.names.iter().map(|(key, number)| (key.clone(), *number)).collect();
        for ((node, symbol), number) in known {
            let class = self.find(number);
            if self.called.contains_key(&class) {
                continue;
            }
            let name = match node {
                Some(node) if self.given.contains(&symbol) => format!("{}.{symbol}", node_name(node)),
                _ => symbol,
            };
            self.given.insert(name.clone());
            self.called.insert(class, name);
        }
        for (start, info) in self.starts.clone().into_iter().zip(inputs) {
            for (at, (extent, symbol)) in info.shape.iter_mut().zip(&mut info.symbols).enumerate() {
                let class = self.find(start + at);
                match self.fixed.get(&class) {
                    Some(fixed) => *extent = *fixed,
                    None => *symbol = self.called.get(&class).cloned().unwrap_or_default(),
                }
            }
        }
        Ok(())
    }

    /// A tensor that a node gives goes to another one. What models promise of their results fixes nothing.
    pub(super) fn pass(&mut self, giver: usize, given: &TensorInfo, taker: usize, taken: &TensorInfo) {
        for ((one, symbol), (other, own)) in given.dimensions().zip(taken.dimensions()) {
            if one < 0 && other < 0 && !symbol.is_empty() && !own.is_empty() {
                let (one, other) = (self.named(Some(giver), symbol), self.named(Some(taker), own));
                let (one, other) = (self.find(one), self.find(other));
                // Whom callers feed directly knows better what it is called.
                let name = self.called.get(&other).or_else(|| self.called.get(&one)).cloned();
                self.unite(one, other);
                if let Some(name) = name {
                    let class = self.find(one);
                    self.called.insert(class, name);
                }
            }
        }
    }

    /// Names the free extents of what a node gives: as those of the inputs that they are equal to, or as its model does, unless that is the name of
    /// another one.
    pub(super) fn name_output(&mut self, info: &mut TensorInfo, giver: usize) {
        for (extent, symbol) in info.shape.iter().zip(&mut info.symbols) {
            if *extent >= 0 || symbol.is_empty() {
                continue;
            }
            let named = self.named(Some(giver), symbol);
            let class = self.find(named);
            match self.called.get(&class) {
                Some(name) => symbol.clone_from(name),
                None if self.given.contains(symbol) => symbol.clear(),
                None => {}
            }
        }
    }

    fn named(&mut self, node: Option<usize>, symbol: &str) -> usize {
        let next = self.same.len();
        let number = *self.names.entry((node, symbol.to_owned())).or_insert(next);
        if number == next {
            self.same.push(next);
        }
        number
    }

    fn find(&mut self, mut at: usize) -> usize {
        while let Some(above) = self.same.get(at).copied().filter(|above| *above != at) {
            // Whoever comes this way again has half of it.
            let further = self.same.get(above).copied().unwrap_or(above);
            if let Some(place) = self.same.get_mut(at) {
                *place = further;
            }
            at = further;
        }
        at
    }

    fn unite(&mut self, one: usize, other: usize) {
        let (one, other) = (self.find(one), self.find(other));
        if one == other {
            return;
        }
        if let Some(above) = self.same.get_mut(other) {
            *above = one;
        }
        if let Some(extent) = self.fixed.remove(&other) {
            self.fix(one, extent);
        }
    }

    fn fix(&mut self, at: usize, extent: i64) {
        let class = self.find(at);
        let known = *self.fixed.entry(class).or_insert(extent);
        if known != extent {
            self.wrong.get_or_insert((known, extent));
        }
    }
}
