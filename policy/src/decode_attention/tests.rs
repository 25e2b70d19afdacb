use super::*;

/// libtorch's attention of one row: the same in a few operations.
fn reference(query: &Tensor, keys: &Tensor, values: &Tensor, row: Row) -> Tensor {
    let [kv_heads, group] = [keys.size()[1], query.size()[0] / keys.size()[1]];
    let dim = query.size()[1];
    let of = |table: &Tensor| {
        let held = table.get(row.slot as i64).narrow(1, 0, row.keys as i64);
        held.to_kind(Kind::Float)
    };
    let query = query.to_kind(Kind::Float).view([kv_heads, group, dim]);
    let scores = query.matmul(&of(keys).transpose(1, 2)) / (dim as f64).sqrt();
    scores.softmax(-1, None).matmul(&of(values)).reshape([-1])
}

fn check(kind: Kind, heads: i64, kv_heads: i64, dim: i64, tolerance: f64) {
    tch::manual_seed(dim);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
    let rows = [(3, 300), (0, 1), (1, 7), (4, 137)].map(|(slot, keys)| Row { slot, keys });
    let (keys, values) = (random(&[5, kv_heads, 300, dim]), random(&[5, kv_heads, 300, dim]));
    // A view, as the network hands it over.
    let query = (random(&[4, heads + 2, dim]) * 2.0).narrow(1, 1, heads);
    let attended = attend(&query, &keys, &values, &rows);
    assert_eq!(attended.kind(), kind);
    for (index, row) in rows.into_iter().enumerate() {
        let expected = reference(&query.get(index as i64), &keys, &values, row);
        let difference = (attended.get(index as i64) - expected).abs().max().double_value(&[]);
        assert!(difference < tolerance, "{kind:?} D {dim}, {row:?}: {difference}");
    }
}

#[test]
fn it_is_the_attention_of_libtorch() {
    for dim in [16, 64, 128, 80, 24, 6] {
        check(Kind::Float, 4, 2, dim, 2e-6);
    }
    check(Kind::Float, 6, 6, 32, 2e-6);
    check(Kind::Float, 8, 1, 32, 2e-6);
    // The output is rounded to 8 bits.
    check(Kind::BFloat16, 4, 2, 64, 2e-2);
}

#[test]
fn wide_registers_change_the_last_bits_at_most() {
    for dim in [16, 64, 6, 20] {
        let numbers = |scale: f32| move |at: usize| (at as f32 * 0.37).sin() * scale;
        let query: Vec<f32> = (0..2 * dim).map(numbers(2.0)).collect();
        let keys: Vec<f32> = (0..2 * 29 * dim).map(numbers(1.0)).collect();
        let rows = [Row { slot: 1, keys: 29 }];
        let (mut fast, mut plain) = (vec![0.0; 2 * dim], vec![0.0; 2 * dim]);
        let layer = |out| Layer { kv_heads: 1, capacity: 29, dim, query: &query, out };
        layer(&mut fast[..]).attend(&keys, &keys, &rows);
        let add = |sum, one: f32, other| sum + one * other;
        layer(&mut plain[..]).attend_rows(&keys, &keys, &rows, tile_of_dots, add);
        for (fast, plain) in fast.iter().zip(&plain) {
            assert!((fast - plain).abs() < 1e-6, "D {dim}: {fast} {plain}");
        }
    }
}

#[test]
fn exp_is_exact_to_the_last_bits() {
    for step in 0..87_000 {
        let x = -f64::from(step) / 1000.0;
        let error = f64::from(exp(x as f32)) / f64::from(x as f32).exp() - 1.0;
        assert!(error.abs() < 3e-7, "{x}: {error}");
    }
    assert_eq!(exp(0.0), 1.0);
    assert!(exp(f32::NEG_INFINITY) < 1e-37);
    assert!(exp(f32::NAN).is_nan());
}
