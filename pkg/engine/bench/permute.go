package bench

// permutation visits every number below n once, in an order that looks random, and needs no memory: fio's random map without the map. It is a Feistel
// network on an even number of bits; numbers at n and above are sent through again.
type permutation struct {
	n    uint64
	half uint
	keys [4]uint64
}

func newPermutation(n int64, seed uint64) permutation {
	p := permutation{n: uint64(n), half: 1}
	for uint64(1)<<(2*p.half) < p.n {
		p.half++
	}
	for i := range p.keys {
		seed += 0x9e3779b97f4a7c15
		p.keys[i] = mix(seed)
	}
	return p
}

// at is the i-th number; i counts round n.
func (p permutation) at(i uint64) int64 {
	x := i % p.n
	for {
		mask := uint64(1)<<p.half - 1
		l, r := x>>p.half, x&mask
		for _, k := range p.keys {
			l, r = r, l^(mix(r^k)&mask)
		}
		if x = l<<p.half | r; x < p.n {
			return int64(x)
		}
	}
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
