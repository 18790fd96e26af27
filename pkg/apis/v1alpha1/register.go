package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of this package's kinds.
var GroupVersion = schema.GroupVersion{Group: "rowan.storage", Version: "v1alpha1"}

// AddToScheme makes the kinds known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&PoolSet{}, &PoolSetList{},
		&Pool{}, &PoolList{},
		&LocalVolume{}, &LocalVolumeList{},
		&LocalSnapshot{}, &LocalSnapshotList{},
		&LocalSnapshotGroup{}, &LocalSnapshotGroupList{},
		&SnapshotPolicy{}, &SnapshotPolicyList{},
		&ClusterSnapshotPolicy{}, &ClusterSnapshotPolicyList{},
		&VolumeRollback{}, &VolumeRollbackList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
