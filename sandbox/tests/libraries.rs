//! The libraries that scripts use, under the default policy.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub)]

mod common;

use common::{Place, text};

#[test]
fn numerical_libraries_work() {
    let place = Place::new();
    let prepared = place.policy().prepare();
    let body = r"
import sys
try:
    import numpy, onnx, onnxruntime, sklearn.linear_model, joblib
except ModuleNotFoundError as error:
    print('skipped:', error); sys.exit(0)
import os
x = numpy.random.default_rng(0).normal(size=(200, 3))
y = x @ numpy.array([1.0, 2.0, 3.0])
assert numpy.linalg.svd(x)[1].shape == (3,)
model = sklearn.linear_model.LinearRegression(n_jobs=2).fit(x, y)
file = os.environ['TMPDIR'] + '/model.joblib'
joblib.dump(model, file)
assert numpy.allclose(joblib.load(file).coef_, [1, 2, 3])
assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(i) for i in range(-4, 0)) == [4, 3, 2, 1]
from onnx import TensorProto, helper
graph = helper.make_graph(
    [helper.make_node('Add', ['a', 'a'], ['b'])], 'g',
    [helper.make_tensor_value_info('a', TensorProto.FLOAT, [2])], [helper.make_tensor_value_info('b', TensorProto.FLOAT, [2])])
made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=['CPUExecutionProvider'])
assert session.run(None, {'a': numpy.float32([1, 2])})[0].tolist() == [2, 4]
print('worked')
";
    let output = place.run(&prepared, body);
    assert!(output.status.success(), "{}\n{}", output.status, text(&output));
    print!("{}", String::from_utf8_lossy(&output.stdout));
}
