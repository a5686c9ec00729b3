// Classify a BIDS data set with Nextflow, a process per participant, then one table of all. NOT RUN HERE: Nextflow
// fetches its runtime from a place that the developers' machines do not reach.
//
//   nextflow run ssclf.nf --bids /data/bids --out /data/derivatives/ssclf --model /data/my-model
nextflow.enable.dsl = 2

process participant {
    cpus 2

    input:
    val label

    output:
    val label

    // 3: finished, some volumes failed; their rows say why, and the process counts as done
    script:
    """
    ssclf bids '${params.bids}' '${params.out}' participant --participant-label '${label}' --model '${params.model}' \\
      --workers ${task.cpus} --quiet || [ \$? = 3 ]
    """
}

process group {
    input:
    val labels

    script:
    """
    ssclf bids '${params.bids}' '${params.out}' group || [ \$? = 3 ]
    """
}

workflow {
    labels = Channel.fromPath("${params.bids}/sub-*", type: 'dir').map { folder -> folder.name - 'sub-' }
    group(participant(labels).collect())
}
