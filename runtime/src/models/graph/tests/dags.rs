//! Any graph gives what its models give one after the other, wherever they are.

use proptest::prelude::*;

use super::{Copy, Rig, Work, add, next, split, twice, values};

/// A kind of model: its name, what it takes and gives, and what it does.
const KINDS: [(&str, &[&str], &[&str], Work); 4] = [
    ("next", &["x"], &["y"], next),
    ("twice", &["x"], &["y"], twice),
    ("add", &["one", "other"], &["y"], add),
    ("split", &["x"], &["half", "square"], split),
];

/// A graph: of each node its kind, and whom it takes from, counted round what there is before it; which outputs are wanted; and where models are.
#[derive(Clone, Debug)]
struct Dag {
    inputs: usize,
    nodes: Vec<(usize, [usize; 2])>,
    wanted: Vec<bool>,
    order: Vec<usize>,
    copies: Vec<Vec<Copy>>,
}

prop_compose! {
    fn dags()(
        inputs in 1usize..4,
        nodes in prop::collection::vec((0usize..4, any::<[usize; 2]>()), 1..16),
        wanted in prop::collection::vec(any::<bool>(), 64),
        order in prop::collection::vec(any::<usize>(), 16),
        copies in prop::collection::vec(prop::collection::vec((0usize..3, any::<bool>()), 1..3), 4),
    ) -> Dag {
        Dag { inputs, nodes, wanted, order, copies }
    }
}

impl Dag {
    /// The graph, its outputs each evaluated directly, and whether each is wanted.
    fn graph(&self, sent: &[Vec<f32>]) -> (String, Vec<(Vec<f32>, bool)>) {
        // What there is to be taken: its name, its values, and whether anybody takes it.
        let mut there: Vec<(String, Vec<f32>, bool)> =
            sent.iter().enumerate().map(|(at, values)| (format!("i{at}"), values.clone(), false)).collect();
        let mut nodes = Vec::new();
        for (at, (kind, from)) in self.nodes.iter().enumerate() {
            let (model, inputs, outputs, work) = KINDS[*kind];
            let count = there.len();
            let taken: Vec<usize> = inputs.iter().zip(from).map(|(_, from)| from % count).collect();
            let fed =
                inputs.iter().zip(&taken).map(|(input, from)| format!("{input} = '{}'", there[*from].0));
            let fed: Vec<_> = fed.collect();
            let position = self.order[at % self.order.len()] % (nodes.len() + 1);
            nodes.insert(
                position,
                format!("{{name = 'n{at}', model = '{model}', inputs = {{{}}}}}", fed.join(", ")),
            );
            let rows: Vec<_> = taken.iter().map(|from| there[*from].1.clone()).collect();
            taken.iter().for_each(|from| there[*from].2 = true);
            for (output, values) in outputs.iter().zip(work(&rows)) {
                there.push((format!("n{at}.{output}"), values, false));
            }
        }
        let mut outputs = Vec::new();
        let mut given = Vec::new();
        for (at, (name, values, is_taken)) in there.iter().enumerate().skip(self.inputs) {
            // All that nobody takes, so that nothing is for nothing; and of the rest some.
            if !is_taken || self.wanted[at % self.wanted.len()] {
                outputs.push(format!("{{name = 'o{at}', from = '{name}'}}"));
                given.push((values.clone(), self.wanted[(at + 7) % self.wanted.len()]));
            }
        }
        let inputs = there[..self.inputs].iter().filter(|(.., is_taken)| *is_taken);
        let inputs: Vec<_> = inputs.map(|(name, ..)| format!("{{name = '{name}'}}")).collect();
        let inputs = inputs.join(", ");
        let (outputs, nodes) = (outputs.join(", "), nodes.join(", "));
        (format!("inputs = [{inputs}]\noutputs = [{outputs}]\nnodes = [{nodes}]"), given)
    }

    /// Which inputs anybody takes.
    fn taken(&self, text: &str) -> Vec<usize> {
        (0..self.inputs).filter(|at| text.contains(&format!("{{name = 'i{at}'}}"))).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_graph_gives_what_its_models_give_one_after_the_other(dag in dags()) {
        let sent: Vec<Vec<f32>> = (0..dag.inputs).map(|at| vec![at as f32 + 0.5, -(at as f32)]).collect();
        let (text, expected) = dag.graph(&sent);
        let mut rig = Rig::new(3);
        for ((model, inputs, outputs, work), copies) in KINDS.iter().zip(&dag.copies) {
            rig.model(model, inputs, outputs, *work, copies);
        }
        rig.ensemble("e", &text);
        let rig = rig.ready();
        let wanted: Vec<usize> = expected.iter().enumerate().filter(|(_, (_, wanted))| *wanted).map(|(at, _)| at).collect();
        let taken: Vec<&[f32]> = dag.taken(&text).into_iter().map(|at| sent[at].as_slice()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let given = runtime.block_on(rig.call("e", &taken, &wanted)).unwrap();
        rig.models.stop();
        for (at, tensor) in wanted.iter().zip(&given) {
            prop_assert!(tensor.resident().is_none());
            prop_assert_eq!(&values(tensor), &expected[*at].0, "{}", &text);
        }
        prop_assert_eq!(given.len(), wanted.len());
    }
}
