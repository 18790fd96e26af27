package rpc

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// fill sets every field of a struct to something that is not its zero, different from every other.
func fill(t *testing.T, v reflect.Value, n *int64) {
	t.Helper()
	for i := range v.NumField() {
		f := v.Field(i)
		*n++
		switch f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(*n, *n).UTC()))
			continue
		case map[string]string:
			f.Set(reflect.ValueOf(map[string]string{fmt.Sprint("k", *n): fmt.Sprint("v", *n)}))
			continue
		case []string:
			f.Set(reflect.ValueOf([]string{fmt.Sprint("s", *n)}))
			continue
		case []engine.MemberInfo:
			list := make([]engine.MemberInfo, 2)
			fill(t, reflect.ValueOf(&list[0]).Elem(), n)
			fill(t, reflect.ValueOf(&list[1]).Elem(), n)
			f.Set(reflect.ValueOf(list))
			continue
		}
		switch f.Kind() {
		case reflect.String:
			f.SetString(fmt.Sprint("s", *n))
		case reflect.Int, reflect.Int64:
			f.SetInt(*n)
		case reflect.Float64:
			f.SetFloat(float64(*n) / 4)
		case reflect.Uint64, reflect.Uint8:
			f.SetUint(uint64(*n))
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
			fill(t, f.Elem(), n)
		case reflect.Struct:
			fill(t, f, n)
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			fill(t, f.Index(0), n)
		default:
			t.Fatalf("%s: %s is of a kind the wire does not know", v.Type(), v.Type().Field(i).Name)
		}
	}
}

func roundTrip[T any, M proto.Message](t *testing.T, toWire func(T) M, fromWire func(M) T) {
	t.Helper()
	var zero, full T
	var n int64
	fill(t, reflect.ValueOf(&full).Elem(), &n)
	for _, want := range []T{zero, full} {
		data, err := proto.Marshal(toWire(want))
		if err != nil {
			t.Fatal(err)
		}
		m := toWire(zero)
		if err := proto.Unmarshal(data, m); err != nil {
			t.Fatal(err)
		}
		if got := fromWire(m); !reflect.DeepEqual(got, want) {
			t.Errorf("%T came back as\n%+v, was\n%+v", want, got, want)
		}
	}
}

func TestEveryFieldCrosses(t *testing.T) {
	roundTrip[engine.PoolInfo](t, poolToWire, poolFromWire)
	roundTrip[engine.MemberSpec](t, memberSpecToWire, memberSpecFromWire)
	roundTrip[engine.VolumeInfo](t, volumeToWire, volumeFromWire)
	roundTrip[engine.SnapshotInfo](t, snapshotToWire, snapshotFromWire)
	roundTrip[engine.TidyStep](t, tidyToWire, tidyFromWire)
	roundTrip[engine.CheckReport](t, checkToWire, checkFromWire)
	roundTrip[engine.ScrubReport](t, scrubToWire, scrubFromWire)
	roundTrip[engine.ScrubProblem](t, problemToWire, problemFromWire)
	roundTrip[metafs.Counts](t, metadataToWire, metadataFromWire)
	roundTrip[host.Attachment](t, attachmentToWire, attachmentFromWire)
}
