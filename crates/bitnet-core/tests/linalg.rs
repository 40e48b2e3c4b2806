//! Residuals of products and decompositions, by themselves and against what NumPy computed once
//! (`data/make_linalg_cases.py`).

use std::path::Path;

use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::tensor::{TensorIndex, load_tensors};
use bitnet_core::{BitNetDType, BitNetTensor, Device, Error};

fn random(shape: &[usize], seed: u64, pool: &HybridMemoryPool) -> BitNetTensor {
    BitNetTensor::random(shape, BitNetDType::F32, &Device::Cpu, seed, pool).unwrap()
}

/// The largest difference between two tensors.
fn distance(a: &BitNetTensor, b: &BitNetTensor, pool: &HybridMemoryPool) -> f32 {
    let difference = a.sub(b, pool).unwrap().abs(pool).unwrap();
    difference.max(&[], false, pool).unwrap().as_slice::<f32>()[0]
}

#[test]
fn products_are_sums_of_products_also_of_views_and_in_batches() {
    let pool = HybridMemoryPool::new().unwrap();
    let (a, b) = (random(&[3, 1, 4, 5], 1, &pool), random(&[2, 6, 5], 2, &pool).transpose().unwrap());
    let product = a.matmul(&b, &pool).unwrap();
    assert_eq!(product.shape(), [3, 2, 4, 6]);
    // (3, 1, 4, 1, 5) · (2, 1, 6, 5), summed over the last axis.
    let left = a.reshape(&[3, 1, 4, 1, 5], &pool).unwrap();
    let right = b.transpose().unwrap().reshape(&[2, 1, 6, 5], &pool).unwrap();
    let want = left.mul(&right, &pool).unwrap().sum(&[-1], false, &pool).unwrap();
    assert!(distance(&product, &want, &pool) < 1e-6);
    let identity = BitNetTensor::identity(5, BitNetDType::F32, &Device::Cpu, &pool).unwrap();
    assert_eq!(distance(&a.matmul(&identity, &pool).unwrap(), &a, &pool), 0.0);
    assert!(matches!(a.matmul(&a, &pool), Err(Error::Shapes { .. })));
    assert_eq!(
        random(&[2, 0], 1, &pool).matmul(&random(&[0, 3], 1, &pool), &pool).unwrap().as_bytes(),
        [0; 24]
    );
}

#[test]
fn dot_and_outer_products_agree_with_matrix_products() {
    let pool = HybridMemoryPool::new().unwrap();
    let (x, y) = (random(&[300], 1, &pool), random(&[300], 2, &pool));
    let row = x.reshape(&[1, 300], &pool).unwrap();
    let column = y.reshape(&[300, 1], &pool).unwrap();
    let dot = row.matmul(&column, &pool).unwrap().as_slice::<f32>()[0];
    assert!((x.dot(&y, &pool).unwrap() - dot).abs() < 1e-5);
    let outer = x.outer(&y, &pool).unwrap();
    let want = row.transpose().unwrap().matmul(&column.transpose().unwrap(), &pool).unwrap();
    assert_eq!(distance(&outer, &want, &pool), 0.0);
    assert!(x.dot(&row, &pool).is_err());
}

#[test]
fn decompositions_multiply_to_what_they_decompose() {
    let pool = HybridMemoryPool::new().unwrap();
    for (m, n) in [(30, 20), (20, 30), (25, 25), (1, 7)] {
        let a = random(&[m, n], 7, &pool);
        let r = m.min(n);
        let identity = BitNetTensor::identity(r, BitNetDType::F32, &Device::Cpu, &pool).unwrap();
        let orthonormal = |q: &BitNetTensor| {
            let square = q.transpose().unwrap().matmul(q, &pool).unwrap();
            distance(&square, &identity, &pool) < 1e-5
        };
        let (u, s, v) = a.svd(&pool).unwrap();
        let back = u.mul(&s, &pool).unwrap().matmul(&v.transpose().unwrap(), &pool).unwrap();
        assert!(distance(&back, &a, &pool) < 1e-5 && orthonormal(&u) && orthonormal(&v), "svd {m} {n}");
        assert!(s.as_slice::<f32>().is_sorted_by(|a, b| a >= b));
        let (q, triangle) = a.qr(&pool).unwrap();
        assert_eq!((q.shape(), triangle.shape()), (&[m, r][..], &[r, n][..]));
        assert!(
            distance(&q.matmul(&triangle, &pool).unwrap(), &a, &pool) < 1e-5 && orthonormal(&q),
            "qr {m} {n}"
        );
        let below = |i: usize| i / n > i % n;
        assert!(triangle.as_slice::<f32>().iter().enumerate().all(|(i, x)| !below(i) || *x == 0.0));

        let identity = BitNetTensor::identity(m, BitNetDType::F32, &Device::Cpu, &pool).unwrap();
        let definite = a.matmul(&a.transpose().unwrap(), &pool).unwrap().add(&identity, &pool).unwrap();
        let l = definite.cholesky(&pool).unwrap();
        assert!(distance(&l.matmul(&l.transpose().unwrap(), &pool).unwrap(), &definite, &pool) < 1e-4);
        let b = random(&[m, 3], 8, &pool);
        let x = definite.solve(&b, &pool).unwrap();
        assert!(distance(&definite.matmul(&x, &pool).unwrap(), &b, &pool) < 1e-4, "solve {m}");
    }
}

/// As far from NumPy's double precision as single precision may be: `size` roundings, for every sum is of no more terms,
/// each of a part in 2²³ of the largest number that comes up, and where a matrix is divided by or decomposed into others,
/// times its condition number, which is 4.
#[test]
fn results_are_those_of_numpy() {
    let pool = HybridMemoryPool::new().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/linalg_cases.safetensors");
    let tensors = load_tensors(&path).unwrap();
    let shapes: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".definite")).collect();
    assert_eq!(shapes.len(), 9);
    for case in shapes {
        let get = |name: &str| tensors[&format!("{case}.{name}")].copy(&pool).unwrap();
        let largest = |tensor: &BitNetTensor| {
            tensor.abs(&pool).unwrap().max(&[], false, &pool).unwrap().as_slice::<f32>()[0]
        };
        let a = get("a");
        let size = a.shape().iter().copied().max().unwrap() as f32;
        let check = |name: &str, got: &BitNetTensor, condition: f32, scale: f32| {
            let want = get(name);
            assert_eq!(got.shape(), want.shape(), "{case} {name}");
            let (error, tolerance) =
                (distance(got, &want, &pool), f32::EPSILON * size * condition * scale.max(largest(&want)));
            assert!(error <= tolerance, "{case} {name}: {error:e} off, {tolerance:e} allowed");
        };
        let (batch, row) = (get("batch"), get("row"));
        let first = a.slice(&[TensorIndex::Index(0)]).unwrap();
        let terms = |other: &BitNetTensor| largest(&a) * largest(other);
        check("matmul", &a.matmul(&batch, &pool).unwrap(), 1.0, terms(&batch));
        let dot =
            BitNetTensor::full(&[1], first.dot(&row, &pool).unwrap(), BitNetDType::F32, &Device::Cpu, &pool);
        check("dot", &dot.unwrap(), 1.0, terms(&row));
        check("outer", &first.outer(&row, &pool).unwrap(), 1.0, 0.0);
        let (_, s, _) = a.svd(&pool).unwrap();
        check("singular_values", &s, 1.0, 0.0);
        let (_, triangle) = a.qr(&pool).unwrap();
        check("abs_r", &triangle.abs(&pool).unwrap(), 4.0, 0.0);
        check("cholesky", &get("definite").cholesky(&pool).unwrap(), 4.0, 0.0);
        check("solve", &get("regular").solve(&get("b"), &pool).unwrap(), 4.0, 0.0);
    }
}

#[test]
fn matrices_without_the_property_are_refused() {
    let pool = HybridMemoryPool::new().unwrap();
    let zeros = BitNetTensor::zeros(&[3, 3], BitNetDType::F32, &Device::Cpu, &pool).unwrap();
    let refused = |result: Result<BitNetTensor, Error>, wanted: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    };
    refused(zeros.solve(&zeros, &pool), "regular");
    refused(zeros.sub(1.0, &pool).unwrap().cholesky(&pool), "positive definite");
    refused(random(&[2, 3], 1, &pool).cholesky(&pool), "square");
    refused(random(&[2], 1, &pool).qr(&pool).map(|(q, _)| q), "two dimensions");
}
