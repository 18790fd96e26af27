package cluster_test

import (
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// failing is a fixture one of whose writes fails, from when it is armed on: the nth, before or after it was done.
type failing struct {
	*fixture
	nth  int
	done bool
	how  string // for people
	n    int
	hit  bool
}

// everyWriteFails goes through a life again and again, each time with another write failing, until it makes no more writes.
func everyWriteFails(t *testing.T, life func(f *failing)) {
	t.Helper()
	for _, done := range []bool{false, true} {
		for nth := 1; ; nth++ {
			f := &failing{fixture: newFixture(t, nil), nth: nth, done: done, how: fmt.Sprintf("write %d failed (done: %t)", nth, done)}
			if life(f); !f.hit {
				break
			}
		}
	}
}

func (f *failing) arm() {
	fail := func(verb string, _ client.Object) error {
		if f.n++; f.n != f.nth {
			return nil
		}
		f.hit = true
		return apierrors.NewServerTimeout(schema.GroupResource{Resource: "objects"}, verb, 1)
	}
	if f.done {
		f.api.set(nil, fail)
	} else {
		f.api.set(fail, nil)
	}
}

// again makes a call, and once more where it failed.
func (f *failing) again(what string, do func() error) {
	f.t.Helper()
	err := do()
	if err != nil {
		says(f.t, what+": "+f.how, err, volume.ErrUnavailable)
		err = do()
	}
	if err != nil {
		f.t.Errorf("%s, after %s: %v", what, f.how, err)
	}
}
